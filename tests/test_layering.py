"""Keeps the import order: each part imports only from those above it."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# From the foundations up; a part may import from any part before it.
ORDER = (
  'errors',
  'specs',
  'units',
  'inputs',
  'contracts',
  'types',
  'utils',
  'hosts',
  'storage',
  'runs',
  'norms',
  'losses',
  'metrics',
  'perturbations',
  'data',
  'classifier',
  'models',
  'training',
  'attacks',
  'saliency',
  'sets',
  'detectors',
  'identifiers',
  'defences',
  'reports',
  'evaluation',
)

# What the order alone would allow. Attacks and their like know the idea of a
# classifier, never a backbone; defences take a detector as a callable;
# reports read records and run nothing.
FORBIDDEN = {
  'attacks': {'models', 'training'},
  'saliency': {'models', 'training', 'attacks'},
  'sets': {'models', 'training'},
  'defences': {'detectors', 'identifiers'},
  'identifiers': {'detectors'},
  'reports': set(ORDER) - {'errors', 'units', 'storage', 'metrics', 'reports'},
}


# The only folder of the experiments that every paper may import.
SHARED = {'common'}


def imported(source, package):
  """Gives the dotted names that a module imports, wherever it does so."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = package.split('.')[: -node.level + 1 or None] if node.level else []
      stem = '.'.join([*base, *filter(None, [node.module])])
      names |= {f'{stem}.{alias.name}' for alias in node.names}
  return names


def offences(module, source):
  """Gives the imports of a module of jaxadv or experiments that break rules.

  Args:
    module: Dotted name of its file, such as 'jaxadv.attacks.pgd'.
    source: Its code.

  Returns:
    Sentences, none if all is well.
  """
  top, part, *_ = [*module.split('.'), '']
  found = []
  for name in sorted(imported(source, module.rpartition('.')[0])):
    other_top, other, *_ = [*name.split('.'), '', '']
    if other_top in ('tests', 'benchmarks', 'launch'):
      found.append(f'{module} imports {name}, which is never imported')
    elif top == 'jaxadv' and other_top == 'experiments':
      found.append(f'{module} imports {name}; jaxadv knows no experiment')
    elif top == other_top == 'experiments' and other not in SHARED | {part}:
      found.append(f'{module} imports {name}, which is of another paper')
    elif top == other_top == 'jaxadv' and other in ORDER and part in ORDER:
      below = ORDER.index(other) > ORDER.index(part)
      if below or other in FORBIDDEN.get(part, ()):
        found.append(f'{module} imports {name}; {part} may not know {other}')
  return found


def _modules():
  # A package's own file counts as a module of the package.
  for top in ('jaxadv', 'experiments'):
    for path in sorted((ROOT / top).rglob('*.py')):
      yield '.'.join(path.relative_to(ROOT).with_suffix('').parts), path


@pytest.mark.parametrize('module, path', list(_modules()))
def test_imports_come_from_above(module, path):
  assert not offences(module, path.read_text(encoding='utf-8'))


def test_every_part_has_its_place():
  parts = {
    module.split('.')[1] for module, _ in _modules() if 'jaxadv' in module
  }
  unknown = parts - {'__init__'} - set(ORDER)
  assert not unknown, f'add {unknown} to ORDER, above what imports it'


def test_reports_import_no_jax_to_be_read_anywhere():
  for path in (ROOT / 'jaxadv' / 'reports').glob('*.py'):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    top = ast.Module([n for n in tree.body if 'Import' in type(n).__name__], [])
    assert not any(
      name.split('.')[0] in ('jax', 'flax', 'optax')
      for name in imported(ast.unparse(top), 'jaxadv.reports')
    )


@pytest.mark.parametrize(
  'module, source',
  [
    ('jaxadv.metrics.roc', 'from jaxadv.classifier import Classifier'),
    ('jaxadv.metrics.roc', 'def f():\n  import jaxadv.attacks.pgd'),
    ('jaxadv.attacks.pgd', 'from jaxadv import models'),
    ('jaxadv.attacks.pgd', 'from ..models import vgg'),
    ('jaxadv.reports.html', 'from jaxadv.data import images'),
    ('jaxadv.defences.rectifier', 'from jaxadv.detectors import backbone'),
    ('jaxadv.sets.build', 'from experiments.connection import kinds'),
    ('experiments.connection.a', 'from experiments.sfe import b'),
    ('experiments.common.data', 'from experiments.sfe import b'),
    ('jaxadv.models.vgg', 'import benchmarks.layers'),
  ],
)
def test_broken_order_is_seen(module, source):
  assert offences(module, source)


@pytest.mark.parametrize(
  'module, source',
  [
    ('jaxadv.attacks.pgd', 'from jaxadv import losses\nfrom . import drive'),
    ('jaxadv.detectors.backbone', 'from jaxadv.models import layers'),
    ('experiments.connection.a', 'from experiments.connection import b'),
    ('jaxadv.reports.html', 'from jaxadv.reports import tables'),
  ],
)
def test_kept_order_is_let_through(module, source):
  assert not offences(module, source)
