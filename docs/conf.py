"""Settings of Sphinx: `python -m sphinx -W docs build/docs`."""

import inspect

import jaxadv

project = 'jaxadv'
author = 'The jaxadv authors'
version = release = jaxadv.__version__

extensions = [
  'myst_parser',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'sphinx.ext.viewcode',
]
html_theme = 'furo'
html_title = f'jaxadv {version}'
html_show_copyright = False

# `Attack` is a link where there is something of that name, else code.
default_role = 'py:obj'
# Types, shapes and ranges stand in the text.
autodoc_typehints = 'none'
autodoc_preserve_defaults = True
autodoc_member_order = 'bysource'
autodoc_default_options = {'no-value': True, 'special-members': '__call__'}
napoleon_custom_sections = [('Attributes', 'params_style')]


def _leave_out_fields(app, what, name, value, skip, options):
  """Leaves out fields of classes, which 'Attributes' describes."""
  is_field = (value.__doc__ or '').startswith('Alias for field number')
  # A function that is the default of a field looks like a method.
  is_default = inspect.isfunction(value) and '.' not in value.__qualname__
  return True if is_field or (what == 'class' and is_default) else None


def _returns_text(app, what, name, value, options, lines):
  """Marks 'Returns' as text; Napoleon would read a type before a colon."""
  lines[:] = [':returns:' if line == 'Returns:' else line for line in lines]


def _find_elsewhere(app, env, node, contnode):
  """Looks a name up among the types and from the top of the package."""
  if node['refdomain'] == 'py':
    for prefix in ('jaxadv.types', 'jaxadv'):
      found = env.domains['py'].resolve_xref(
        env,
        node['refdoc'],
        app.builder,
        'obj',
        f'{prefix}.{node["reftarget"]}',
        node,
        contnode,
      )
      if found is not None:
        return found
  return None


def setup(app):
  """Is called by Sphinx."""
  app.connect('autodoc-skip-member', _leave_out_fields)
  app.connect('autodoc-process-docstring', _returns_text, priority=400)
  app.connect('missing-reference', _find_elsewhere)
