"""Rules that every public name keeps."""

import importlib
import inspect
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import jaxadv
import launch
from jaxadv.attacks import ATTACKS, Composite, make
from jaxadv.errors import UserError
from jaxadv.types import Attack

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _modules():
  # Builders register with TFDS when imported; the data tests import them.
  return [
    info.name
    for info in pkgutil.walk_packages(jaxadv.__path__, 'jaxadv.')
    if '.builders.' not in info.name
  ]


def _public(module):
  """Gives (name, object) of what a module defines for others."""
  for name, value in vars(module).items():
    if (
      not name.startswith('_')
      and getattr(value, '__module__', None) == module.__name__
      and (inspect.isfunction(value) or inspect.isclass(value))
    ):
      yield name, value


@pytest.mark.parametrize('name', _modules())
def test_public_names_are_documented(name):
  module = importlib.import_module(name)
  assert inspect.getdoc(module), f'{name} has no docstring'
  for public, value in _public(module):
    text = inspect.getdoc(value) or ''
    # Named tuples and dataclasses without a docstring get their signature.
    assert text and not text.startswith(f'{public}('), f'{name}.{public}'


@pytest.mark.parametrize('name', _modules())
def test_public_functions_are_annotated_and_named_in_one_spelling(name):
  american = {'color', 'normalize', 'defense', 'eps', 'n_steps', 'steps', 'rng'}
  for public, value in _public(importlib.import_module(name)):
    if inspect.isfunction(value):
      names = set(inspect.signature(value).parameters) | {public}
      assert not names & american, f'{name}.{public}: see the glossary'


@pytest.mark.parametrize('name', ATTACKS)
def test_factories_of_attacks_give_attacks(name):
  attack = make(name)
  if isinstance(attack, Composite):
    return
  assert isinstance(attack, Attack)
  assert isinstance(attack.max_steps, int) and attack.max_steps >= 0
  assert list(inspect.signature(attack.init).parameters) == [
    'keys',
    'classifier',
    'images',
    'labels',
  ]


def test_unknown_attack_names_the_known_ones():
  with pytest.raises(UserError) as error:
    make('fgms')
  assert all(name in str(error.value) for name in ATTACKS)


def test_experiments_have_unique_names_and_the_three_functions():
  found = launch.experiments()
  files = [
    path.stem
    for path in ROOT.glob('experiments/*/*.py')
    if f'experiments.{path.parent.name}.{path.stem}' in found.values()
  ]
  assert sorted(files) == sorted(found) and len(found) == 11
  for stem, name in found.items():
    module = importlib.import_module(name)
    for function in ('get_config', 'cells', 'plan', 'run'):
      assert callable(getattr(module, function, None)), f'{stem}.{function}'


def test_public_names_are_there_and_imported_when_they_are_used():
  code = """
import sys, jaxadv
assert not any(name.startswith('jaxadv.') for name in sys.modules)
for name in jaxadv.__all__:
  assert getattr(jaxadv, name) is not None, name
for name in jaxadv.data.__all__:
  assert getattr(jaxadv.data, name) is not None, name
"""
  subprocess.run([sys.executable, '-c', code], check=True)


def test_attacks_are_imported_without_what_is_slow_or_not_everywhere():
  code = """
import sys
sys.modules['fcntl'] = None  # As on Windows.
import jaxadv.attacks
slow = {'chex', 'flax', 'optax', 'rich', 'scipy', 'sklearn'}
slow.add('tensorflow_datasets')
assert not slow & set(sys.modules), slow & set(sys.modules)
"""
  subprocess.run([sys.executable, '-c', code], check=True)
