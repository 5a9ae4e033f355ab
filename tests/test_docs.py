"""The reference and what describes the package keep up with the code."""

import importlib
import pathlib
import pkgutil
import re

import pytest

import jaxadv

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = {
  path.stem: path.read_text(encoding='utf-8')
  for path in (ROOT / 'docs' / 'api').glob('*.rst')
}
ON_PAGES = set(re.findall(r'automodule:: ([\w.]+)', ' '.join(PAGES.values())))
# What users do not call: the workings of experiments, caches and borders, and
# reports, which are written by what measures.
INTERNAL = {
  'contracts',
  'hosts',
  'inputs',
  'reports',
  'runs',
  'specs',
  'storage',
  'units',
}


def _described(module):
  """Gives the names of a module that the pages describe one by one."""
  text = '\n'.join(PAGES.values())
  found = re.findall(r'(currentmodule|auto\w+|data):: ([\w.]+)', text)
  current, names = '', set()
  for directive, name in found:
    if directive in ('currentmodule', 'automodule'):
      current = name
    elif current == module:
      names.add(name)
  return names


def test_every_part_is_on_a_page():
  parts = {info.name for info in pkgutil.iter_modules(jaxadv.__path__)}
  there = {name.split('.')[1] for name in ON_PAGES}
  assert parts - there == INTERNAL


@pytest.mark.parametrize('name', sorted(ON_PAGES))
def test_pages_name_modules_that_are_there(name):
  importlib.import_module(name)


def test_the_page_of_attacks_has_them_all():
  # What every part shares is on the page of types.
  shared = {'Attack', 'AttackResult', 'picture_keys'}
  assert _described('jaxadv.attacks') == set(jaxadv.attacks.__all__) - shared


def test_every_page_is_in_the_index():
  index = (ROOT / 'docs' / 'index.md').read_text(encoding='utf-8')
  assert set(re.findall(r'^api/(\w+)$', index, re.MULTILINE)) == set(PAGES)


def test_the_citation_has_the_version():
  text = (ROOT / 'CITATION.cff').read_text(encoding='utf-8')
  assert f'\nversion: {jaxadv.__version__}\n' in text
