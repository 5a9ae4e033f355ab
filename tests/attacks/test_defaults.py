"""What is not given suits what is: our defaults beside those of others.

Their numbers, run by our code: Foolbox 3.3 (`LinfPGD`, `L2PGD`, `L1PGD`,
`L2DeepFool`, `DDNAttack`), torchattacks 3.5 (`PGD`, `PGDL2`, `CW`).
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, norms
from jaxadv.errors import DoubtWarning
from jaxadv.types import picture_keys

RADII = {
  'linf': (0.004, 0.012, 0.03, 0.1),
  'l2': (0.05, 0.15, 0.4, 1.5),
  'l1': (0.3, 1.0, 3.0, 10.0),
}
# (norm, step size by the radius, number of steps)
PEERS = {
  'foolbox_linf': ('linf', lambda epsilon: 0.01 / 0.3 * epsilon, 40),
  'foolbox_l2': ('l2', lambda epsilon: 0.025 * epsilon, 50),
  'foolbox_l1': ('l1', lambda epsilon: 0.025 * epsilon, 50),
  'torchattacks_linf': ('linf', lambda epsilon: 2 / 255, 10),
  'torchattacks_l2': ('l2', lambda epsilon: 0.2, 10),
}
MINIMAL = {
  'deepfool': {'num_steps': 50, 'num_candidates': 10, 'overshoot': 0.02},
  'ddn': {'num_steps': 100, 'init_norm': 1.0, 'gamma': 0.05},
  # torchattacks does not search the constant.
  'carlini_wagner': {
    'num_steps': 50,
    'binary_search_steps': 1,
    'initial_const': 1.0,
    'abort_early': False,
  },
}


@pytest.fixture(scope='module')
def given(trained):
  return picture_keys(jax.random.key(0), jnp.arange(40)), *trained


@pytest.mark.parametrize('peer', PEERS)
def test_pgd_by_name_succeeds_as_often_as_with_the_numbers_of(peer, given):
  norm, step_size, num_steps = PEERS[peer]
  others = {'num_steps': num_steps}

  @jax.jit
  def rates(epsilon):
    hyper = {'norm': norm, 'epsilon': epsilon}
    theirs = attacks.make(
      'pgd', **hyper, **others, step_size=step_size(epsilon)
    )
    each = attacks.make('pgd', **hyper), theirs
    return [attack(*given).success.mean() for attack in each]

  for epsilon in RADII[norm]:
    ours, theirs = rates(epsilon)
    assert ours >= theirs - 0.03


@pytest.mark.parametrize(
  'name',
  [
    'deepfool',
    'ddn',
    pytest.param('carlini_wagner', marks=pytest.mark.slow),
  ],
)
def test_smallest_changes_are_as_small_as_with_the_numbers_of_others(
  name, given
):
  ours, theirs = (
    jax.jit(attacks.make(name, **hyper))(*given)
    for hyper in ({}, MINIMAL[name])
  )
  assert ours.success.mean() >= theirs.success.mean() - 0.03
  size = lambda result: jnp.median(norms.l2(result.images - given[2]))
  assert size(ours) <= 1.02 * size(theirs)


def test_steps_follow_radius_and_number():
  assert norms.usual_step(8 / 255, 10) == pytest.approx(2 / 255)
  images = jnp.full((1, 2, 2, 1), 0.5)
  keys = picture_keys(jax.random.key(0), jnp.arange(1))
  steady = lambda images: images.sum((1, 2, 3))[:, None] * jnp.array([1.0, 0])
  start = lambda attack: attack.start(
    keys, steady, images, jnp.zeros(1, jnp.int32)
  )
  step_sizes = {
    0.05: start(attacks.pgd(0.2)).step_size,
    0.025: start(attacks.pgd(0.2, num_steps=20)).step_size,
    0.375: start(attacks.make('bim', norm='l2', epsilon=1.5)).step_size,
    0.005: start(attacks.patch(0.2, 2)).inner.step_size,
    0.1: start(attacks.lavan(2, 25)).inner.step_size,
  }
  for expected, step_size in step_sizes.items():
    np.testing.assert_allclose(step_size, expected, rtol=1e-6)
  # Adam's is that of 8/255 in proportion, but crosses the ball.
  linf = attacks.carlini_wagner_linf
  for attack, expected in (
    (linf(8 / 255), 0.005),
    (linf(2 * 8 / 255, 1000), 0.01),
    (linf(0.2, 5), 0.1),
  ):
    np.testing.assert_allclose(start(attack).learning_rate, expected, rtol=1e-6)


@pytest.mark.parametrize(
  'build',
  [
    lambda: attacks.pgd(0.5, 0.01, 10),
    lambda: attacks.make('pgd', norm='l2', epsilon=1.5, step_size=2 / 255),
    lambda: attacks.bim(jnp.array([0.01, 0.5]), 0.01),
    lambda: attacks.patch(0.5, 4, 10, 0.01),
    lambda: attacks.carlini_wagner_linf(0.5, 10, learning_rate=0.01),
  ],
)
def test_steps_too_short_for_the_ball_raise_a_doubt(build):
  with pytest.warns(DoubtWarning, match='num_steps times .* of the radius'):
    build()


def test_steps_that_cross_the_ball_raise_no_doubt():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    for name in ('fgsm', 'bim', 'pgd', 'patch', 'lavan', 'carlini_wagner_linf'):
      attacks.make(name)
    attacks.pgd(0.1, 0.01, 10)
    attacks.fgsm(np.float32(0.1))
    jax.eval_shape(lambda epsilon: attacks.pgd(epsilon, 1e-5) and epsilon, 0.1)
