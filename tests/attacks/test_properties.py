"""What holds for every attack of the table."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import norms
from jaxadv.attacks import drive
from jaxadv.losses import succeeded
from jaxadv.types import picture_keys

from . import cases

# They share their loop with another row, which stands for them where a test
# has to compile once more.
VARIANTS = (
  'fgsm_targeted',
  'bim',
  'pgd_l2',
  'pgd_l1',
  'pgd_targeted',
  'deepfool_linf',
  'deepfool_targeted',
  'carlini_wagner_linf',
  'lavan',
  'lavan_targeted',
  'apply_delta',
  'ni_plus',
)

over_all = pytest.mark.parametrize('case', cases.CASES, ids=lambda c: c.name)
over_most = pytest.mark.parametrize(
  'case',
  [
    pytest.param(
      case, marks=[pytest.mark.slow] if case.name in VARIANTS else []
    )
    for case in cases.CASES
  ],
  ids=[case.name for case in cases.CASES],
)


@pytest.fixture(scope='module')
def run(trained):
  """Runs a case on the small network, once for all tests of its result."""

  @functools.cache
  def run(case):
    return compiled(case)(*part(case, trained, jnp.arange(40)))

  return run


@functools.cache
def compiled(case):
  return jax.jit(cases.build(case))


def arguments(case, target):
  return target.classifier, target.images, cases.wanted(case, target.labels, 3)


def part(case, target, rows, seed=0):
  """Keys, classifier, pictures and labels of some rows."""
  classifier, images, labels = arguments(case, target)
  keys = picture_keys(jax.random.key(seed), rows)
  return keys, classifier, images[rows], labels[rows]


@over_all
def test_success_is_true_of_the_images_returned(case, trained, run):
  classifier, images, labels = arguments(case, trained)
  result = run(case)
  judged = succeeded(
    jax.jit(lambda x: classifier(x))(result.images),
    labels,
    targeted=case.targeted,
  )
  np.testing.assert_array_equal(judged, result.success)
  clean = succeeded(classifier(images), labels, targeted=case.targeted)
  assert 0 < jnp.sum(clean) < 40  # Else the next lines test nothing.
  assert jnp.sum(result.success) > jnp.sum(clean)
  assert jnp.all(result.success[clean])
  np.testing.assert_array_equal(result.images[clean], images[clean])


@over_all
def test_images_lie_in_the_box_and_the_ball(case, trained, run):
  result = run(case)
  assert result.images.dtype == jnp.float32
  assert 0 <= result.images.min() and result.images.max() <= 1
  if case.kind == 'budget':
    distance = norms.BALLS[case.norm](case.epsilon).distance
    size = distance(result.images - trained.images)
    assert size.max() <= case.epsilon + 1e-6
    assert size.max() > 0.9 * case.epsilon
  if case.kind == 'minimal':
    failed = ~result.success
    np.testing.assert_array_equal(result.images[failed], trained.images[failed])


@over_all
def test_the_key_decides_random_attacks_and_nothing_else(case, trained, run):
  again = compiled(case)(*part(case, trained, jnp.arange(40)))
  np.testing.assert_array_equal(run(case).images, again.images)
  other = compiled(case)(*part(case, trained, jnp.arange(40), seed=1))
  same = np.array_equal(run(case).images, other.images)
  assert same != case.random


@over_most
def test_rows_do_not_depend_on_their_batch(case, trained, run):
  attack = compiled(case)
  for some in jnp.arange(40)[::-1][:7], jnp.arange(0, 40, 6):
    result = attack(*part(case, trained, some))
    np.testing.assert_array_equal(result.images, run(case).images[some])
    np.testing.assert_array_equal(result.success, run(case).success[some])


@over_most
def test_refilled_slots_change_nothing(case, trained, run):
  # Few slots where rows end early and make room.
  num_slots = 2 if case.kind != 'budget' else 7
  attack = cases.build(case)
  keys, classifier, images, labels = part(case, trained, jnp.arange(40))
  result = jax.jit(lambda *given: drive(attack, *given, num_slots=num_slots))(
    keys, classifier, images, labels
  )
  np.testing.assert_array_equal(result.images, run(case).images)
  np.testing.assert_array_equal(result.success, run(case).success)


@over_most
def test_sharded_equals_unsharded(case, trained, run):
  auto = jax.sharding.AxisType.Auto
  mesh = jax.make_mesh((8,), ('data',), axis_types=(auto,))
  rows = jax.NamedSharding(mesh, jax.P('data'))
  keys, classifier, images, labels = part(case, trained, jnp.arange(40))
  keys, images, labels = jax.device_put((keys, images, labels), rows)
  classifier = jax.device_put(classifier, jax.NamedSharding(mesh, jax.P()))
  result = compiled(case)(keys, classifier, images, labels)
  assert len(result.images.sharding.device_set) == 8
  np.testing.assert_array_equal(result.success, run(case).success)
  close = np.abs(result.images - run(case).images) <= 1e-5
  assert close.mean() >= 0.999


@over_most
def test_new_weights_do_not_retrace(case, trained):
  attack = cases.build(case)
  run = jax.jit(chex.assert_max_traces(lambda *given: attack(*given), n=1))
  keys, classifier, images, labels = part(case, trained, jnp.arange(3))
  for sign in 1, -1:
    changed = jax.tree.map(lambda leaf, sign=sign: sign * leaf, classifier)
    run(keys, changed, images, labels)


def boundary_distance(target, norm):
  """Exact distance of every picture to each class, in the dual norm."""
  weights = target.classifier.variables['weights']
  logits = target.classifier(target.images)
  own = jnp.take_along_axis(logits, target.labels[:, None], axis=1)
  across = weights.T[None] - weights.T[target.labels][:, None]
  order = {'l2': 2, 'linf': 1, 'l1': jnp.inf}[norm]
  slope = jnp.linalg.norm(across, ord=order, axis=-1)
  distance = (own - logits) / jnp.where(slope > 0, slope, 1)
  return jnp.where(slope > 0, distance, jnp.inf)


@pytest.mark.parametrize(
  'case',
  [case for case in cases.CASES if case.optimal],
  ids=lambda case: case.name,
)
def test_linear_classifier_is_attacked_at_its_exact_distance(case, linear):
  distance = boundary_distance(linear, case.norm)
  labels = linear.labels
  if case.targeted:
    labels = jnp.argmin(distance, axis=1)
  nearest = distance.min(axis=1)
  keys = picture_keys(jax.random.key(0), jnp.arange(24))
  if case.kind == 'minimal':
    result = cases.build(case)(keys, linear.classifier, linear.images, labels)
    size = norms.ball(case.norm, 1.0).distance(result.images - linear.images)
    assert jnp.all(result.success)
    assert jnp.all(size >= nearest * (1 - 1e-5))
    # DeepFool's overshoot enlarges by 2 %, and its first step by 1e-4.
    assert jnp.all(size <= case.within * nearest + 2e-4)
  else:
    # The radius of every row is its own: float32[B] hyperparameters.
    attack = jax.jit(
      lambda epsilon: cases.build(case, epsilon)(
        keys, linear.classifier, linear.images, labels
      )
    )
    assert jnp.all(attack(1.25 * nearest).success)
    assert not jnp.any(attack(0.99 * nearest).success)
