"""Sequences, restarts and runs over values; stochastic classifiers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, norms
from jaxadv.attacks import drive
from jaxadv.classifier import from_function
from jaxadv.errors import UserError
from jaxadv.losses import succeeded
from jaxadv.types import picture_keys

EPSILONS = (0.005, 0.01, 0.02)


@pytest.fixture(scope='module')
def given(trained):
  keys = picture_keys(jax.random.key(0), jnp.arange(40))
  return keys, trained.classifier, trained.images, trained.labels


def run(attack, given, **options):
  return jax.jit(lambda *given: drive(attack, *given, **options))(*given)


@pytest.mark.parametrize('num_slots', [None, 7])
def test_a_sequence_keeps_the_first_success(given, num_slots):
  parts = [attacks.fgsm(epsilon) for epsilon in EPSILONS]
  found = run(attacks.sequence(parts), given, num_slots=num_slots)
  alone = [run(part, given) for part in parts]
  assert len({int(result.success.sum()) for result in alone}) == 3
  wanted, success = alone[-1].images, alone[-1].success
  for result in alone[-2::-1]:
    wanted = jnp.where(
      norms.per_row(result.success, wanted), result.images, wanted
    )
    success = success | result.success
  np.testing.assert_array_equal(found.success, success)
  np.testing.assert_array_equal(found.images, wanted)


@pytest.mark.parametrize('num_slots', [None, 7])
def test_over_values_is_the_sequence_of_them_compiled_once(given, num_slots):
  # The value that tells whether it is targeted is not traced.
  make = chex.assert_max_traces(lambda epsilon: attacks.fgsm(epsilon), n=1)
  found = run(
    attacks.over(make, jnp.array(EPSILONS)), given, num_slots=num_slots
  )
  parts = [attacks.fgsm(jnp.float32(epsilon)) for epsilon in EPSILONS]
  wanted = run(attacks.sequence(parts), given)
  np.testing.assert_array_equal(found.success, wanted.success)
  np.testing.assert_allclose(found.images, wanted.images, atol=1e-7)


@pytest.mark.filterwarnings('ignore::jaxadv.errors.DoubtWarning')
def test_restarts_find_more_and_draw_anew(given):
  once = attacks.pgd(norms.linf_ball(0.01), 0.002, 1)
  rates = [
    run(attacks.restarts(once, num), given).success.mean() for num in (1, 8)
  ]
  assert rates[1] > rates[0]


def test_the_smallest_success_is_kept(given):
  images = given[2]
  every = jnp.array(EPSILONS[::-1])
  make = lambda epsilon: attacks.fgsm(epsilon)
  found = run(attacks.over(make, every, smallest=norms.linf), given)
  alone = [run(attacks.fgsm(epsilon), given) for epsilon in EPSILONS]
  success = np.stack([result.success for result in alone])
  size = np.stack([norms.linf(result.images - images) for result in alone])
  wanted = np.where(success, size, np.inf).min(axis=0)
  np.testing.assert_array_equal(found.success, success.any(axis=0))
  np.testing.assert_allclose(
    norms.linf(found.images - images)[found.success],
    wanted[found.success],
    atol=1e-7,
  )


def test_rows_left_out_cost_no_step_and_are_no_success(linear):
  calls = []

  def counted(images):
    jax.debug.callback(lambda: calls.append(len(images)))
    return linear.classifier(images)

  attack = attacks.deepfool(num_steps=5)
  keys = picture_keys(jax.random.key(0), jnp.arange(24))
  given = keys, from_function(counted), linear.images, linear.labels
  done = jnp.arange(24) != 3
  found = run(attack, given, num_slots=2, done=done)
  assert found.success[3]
  jax.effects_barrier()
  few, calls[:] = len(calls), []
  run(attack, given, num_slots=2)
  jax.effects_barrier()
  first_look = 24 / 2  # All rows once, two at a time; the rest are steps.
  assert few - first_look < (len(calls) - first_look) / 5
  inner = attacks.sequence([attack])
  found = run(inner, given, num_slots=2, done=done)
  np.testing.assert_array_equal(found.success, ~done)


@pytest.mark.filterwarnings('ignore::jaxadv.errors.DoubtWarning')
def test_a_stochastic_classifier_gets_fresh_keys_each_step(linear):
  seen = []

  def noisy(variables, images, keys):
    draws = jax.vmap(jax.random.normal)(keys)
    jax.debug.callback(lambda draws: seen.append(np.array(draws)), draws)
    return linear.classifier.apply(variables, images) + draws[:, None]

  classifier = from_function(
    noisy, linear.classifier.variables, stochastic=True
  )
  keys = picture_keys(jax.random.key(0), jnp.arange(24))
  given = keys, classifier, linear.images, linear.labels
  attack = attacks.bim(norms.linf_ball(0.01), 0.003, 3)
  plain = run(attack, given)
  jax.effects_barrier()
  draws = np.stack(seen)
  assert draws.shape == (4, 24)  # Three steps, and judging the result.
  assert len(np.unique(draws)) == draws.size
  slots = run(attack, given, num_slots=5)
  np.testing.assert_array_equal(plain.images, slots.images)
  assert not np.array_equal(
    succeeded(classifier(linear.images, keys), linear.labels), plain.success
  )


def test_what_cannot_be_combined_is_refused():
  targeted = attacks.fgsm(0.1, targeted=True)
  with pytest.raises(UserError, match='at least one'):
    attacks.sequence([])
  if targeted.targeted:
    with pytest.raises(UserError, match='differ in meaning'):
      attacks.sequence([attacks.fgsm(0.1), targeted])
  with pytest.raises(UserError, match='num_restarts is 0'):
    attacks.restarts(targeted, 0)
