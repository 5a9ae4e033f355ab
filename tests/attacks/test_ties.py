"""Classifiers in which every class occurs twice, and other exact ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, losses, norms
from jaxadv.classifier import from_function
from jaxadv.types import picture_keys

from . import cases
from .test_properties import VARIANTS, boundary_distance

# These never ask the classifier, or are PGD on the cross-entropy.
SLOW = {*VARIANTS, 'hsv', 'ni_minus', 'apply_patch', 'patch', 'evading'} - {
  'deepfool_linf',
  'carlini_wagner_linf',
  'lavan',
}


@pytest.fixture(scope='module')
def doubled(linear):
  """The linear classifier with its classes 0 to 2 again as 3 to 5."""
  twice = jax.tree.map(
    lambda leaf: jnp.concatenate([leaf, leaf], axis=-1),
    linear.classifier.variables,
  )
  classifier = from_function(linear.classifier.apply, twice)
  logits = classifier(linear.images)
  # Else the tests below test nothing.
  np.testing.assert_array_equal(logits[:, :3], logits[:, 3:])
  return classifier


@pytest.mark.parametrize(
  'case',
  [
    pytest.param(case, marks=[pytest.mark.slow] if case.name in SLOW else [])
    for case in cases.CASES
  ],
  ids=[case.name for case in cases.CASES],
)
def test_a_class_that_occurs_twice_hides_no_boundary(case, linear, doubled):
  labels = cases.wanted(case, linear.labels, 3)
  keys = picture_keys(jax.random.key(0), jnp.arange(24))
  radius = case.epsilon
  if case.optimal and case.kind == 'budget':
    distance = boundary_distance(linear, case.norm)
    radius = 1.25 * distance[jnp.arange(24), labels]
    if not case.targeted:
      radius = 1.25 * distance.min(axis=1)
  attack = cases.build(case, radius)

  def succeeds(classifier):
    run = jax.jit(attack)
    return run(keys, classifier, linear.images, labels).success

  success = succeeds(doubled)
  if case.optimal:
    assert jnp.all(success)
  else:
    plain = succeeds(linear.classifier)
    assert jnp.all(success >= plain)


@pytest.mark.parametrize(
  'attack',
  [
    attacks.fab('l2', 15),
    attacks.apgd_t(0.05, 10, num_targets=1),
    attacks.deepfool(num_candidates=2),
    attacks.apgd(0.05, 10, loss=losses.dlr),
    attacks.carlini_wagner(30, initial_const=0.1, confidence=0.1),
  ],
  ids=['fab', 'apgd_t', 'deepfool', 'dlr', 'confident'],
)
def test_the_first_rival_is_no_copy_of_the_label(attack, linear, doubled):
  keys = picture_keys(jax.random.key(0), jnp.arange(24))
  result = jax.jit(attack)(keys, doubled, linear.images, linear.labels)
  assert jnp.all(result.success)


def test_a_missing_boundary_lies_at_infinity():
  # Class 2 is as large as the label everywhere, class 1 half a step away.
  classifier = from_function(
    lambda images: jnp.stack(
      [images[:, 0, 0, 0], 1 - images[:, 0, 0, 0], images[:, 0, 0, 0]], 1
    )
  )
  images, labels = jnp.full((1, 1, 1, 1), 0.75), jnp.zeros(1, jnp.int32)
  keys = picture_keys(jax.random.key(0), jnp.arange(1))
  for norm in ('l2', 'linf'):
    result = attacks.deepfool(norm=norm)(keys, classifier, images, labels)
    assert result.success[0]
    np.testing.assert_allclose(images - result.images, 0.25, rtol=0.03)
  # No class is another one: nothing to find, and no NaN.
  flat = from_function(lambda images: images[:, 0, 0] * jnp.ones(3))
  for attack in (attacks.deepfool(), attacks.fab(), attacks.pgd(0.1)):
    result = attack(keys, flat, images, labels)
    assert not result.success[0]
    assert jnp.all(jnp.isfinite(result.images))


def test_square_climbs_towards_what_does_not_tie(linear, doubled):
  keys = picture_keys(jax.random.key(0), jnp.arange(24))
  attack = jax.jit(attacks.square(norms.linf_ball(0.02), 40))
  plain, twice = (
    attack(keys, classifier, linear.images, linear.labels)
    for classifier in (linear.classifier, doubled)
  )
  np.testing.assert_array_equal(plain.success, twice.success)
  assert 0 < plain.success.mean() < 1
  np.testing.assert_array_equal(plain.images, twice.images)
