"""Attacks by name, and as they are written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks
from jaxadv.attacks import registry
from jaxadv.errors import UserError
from jaxadv.norms import l2_ball
from jaxadv.types import picture_keys


@pytest.mark.parametrize('name', attacks.ATTACKS)
def test_every_hyperparameter_can_be_set_to_its_default(name):
  attacks.make(name, **attacks.hyperparameters(name))


@pytest.mark.parametrize(
  'spec, name, hyper',
  [
    ('fgsm', 'fgsm', {}),
    ('pgd:epsilon=8/255', 'pgd', {'epsilon': 8 / 255}),
    ('pgd:norm=l2:num_steps=40', 'pgd', {'norm': 'l2', 'num_steps': 40}),
    ('pgd:step_size=none', 'pgd', {'step_size': None}),
    ('pgd:random_start=False', 'pgd', {'random_start': False}),
    ('ddn:gamma=1:levels=None', 'ddn', {'gamma': 1, 'levels': None}),
  ],
)
def test_specs_are_read_in_the_kinds_of_their_defaults(spec, name, hyper):
  assert attacks.read(spec) == (name, hyper)


@pytest.mark.parametrize(
  'spec, words',
  [
    ('fgms', 'did you mean fgsm'),
    ('pgd:eps=0.1', 'no hyperparameter eps.*did you mean epsilon'),
    ('pgd:ball=1', 'no hyperparameter ball'),
    ('ddn:num_restarts=2', 'no hyperparameter num_restarts'),
    ('pgd:num_steps', 'KEY=VALUE'),
    ('pgd:num_steps=2:num_steps=3', 'gives num_steps twice'),
    ('pgd:num_steps=2.5', 'whole number'),
    ('pgd:epsilon=8/0', 'number'),
    ('pgd:epsilon=far', 'number'),
    ('pgd:random_start=none', 'true or false'),
    ('pgd:loss=1', 'a word'),
    (('pgd',), 'must be one of'),
  ],
)
def test_what_is_wrong_in_a_spec_is_named(spec, words):
  with pytest.raises(UserError, match=words):
    attacks.read(spec)


def test_a_spec_builds_what_its_factory_does(trained):
  keys = picture_keys(jax.random.key(0), jnp.arange(40))
  spec = 'pgd:epsilon=1/2:num_steps=7:norm=l2'
  built = attacks.make(spec, early_stop=True)
  same = attacks.pgd(l2_ball(0.5), num_steps=7, early_stop=True)
  other = attacks.make(spec, epsilon=0.25, early_stop=True)
  found, expected, smaller = (
    jax.jit(attack)(keys, *trained).images for attack in (built, same, other)
  )
  np.testing.assert_array_equal(found, expected)
  assert np.abs(found - smaller).max() > 1e-3


def test_budgets_are_those_of_attacks_that_stay_within_a_radius():
  without = {name for name in attacks.ATTACKS if not registry.has_budget(name)}
  assert without == {
    *('deepfool', 'lavan', 'hsv', 'ni_plus', 'ni_minus', 'carlini_wagner'),
    *('ddn', 'ead', 'fab', 'fab_t'),
  }
