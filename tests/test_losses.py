import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import losses
from jaxadv.attacks import const_search
from jaxadv.errors import UserError

LOGITS = jnp.array([[1.0, 3.0, 2.0], [0.0, -1.0, 4.0], [2.0, 2.0, 0.0]])
LABELS = jnp.array([1, 0, 0])


def test_values(variant):
  np.testing.assert_allclose(
    variant(losses.margin)(LOGITS, LABELS), [-1, 4, 0], atol=1e-5
  )
  chosen = jax.nn.softmax(LOGITS)[jnp.arange(3), LABELS]
  np.testing.assert_allclose(
    variant(losses.cross_entropy)(LOGITS, LABELS), -jnp.log(chosen), rtol=1e-6
  )


FOUR = jnp.array([[5.0, 3.0, 2.0, 1.0], [0.0, 1.0, 4.0, 2.0]])


def test_difference_of_logits_ratio(variant):
  labels, targets = jnp.array([0, 1]), jnp.array([2, 2])
  # (3 - 5) / (5 - 2) and (4 - 1) / (4 - 1).
  np.testing.assert_allclose(variant(losses.dlr)(FOUR, labels), [-2 / 3, 1])
  # (2 - 5) / (5 - 1.5) and (4 - 1) / (4 - 0.5).
  found = variant(losses.targeted_dlr)(FOUR, labels, targets)
  np.testing.assert_allclose(found, [-6 / 7, 6 / 7], rtol=1e-6)
  np.testing.assert_allclose(
    losses.targeted_dlr(1e3 * FOUR, labels, targets), found, rtol=1e-6
  )
  slope = jax.grad(lambda logits: losses.dlr(logits, labels)[0])(FOUR)[0]
  # The ratio is (b - a) / (a - c) at a, b, c = 5, 3, 2.
  np.testing.assert_allclose(slope, [-1 / 9, 1 / 3, -2 / 9, 0], atol=1e-6)


def test_difference_of_logits_ratio_needs_classes():
  with pytest.raises(UserError, match='dlr compares 3 classes .* has 2'):
    losses.dlr(FOUR[:, :2], LABELS[:2])
  with pytest.raises(UserError, match='targeted_dlr compares 4 .* has 3'):
    losses.targeted_dlr(LOGITS, LABELS, LABELS)


def test_cross_entropy_and_its_gradient_equal_those_of_optax(key):
  logits = 3 * jax.random.normal(key, (50, 7))
  labels = jnp.arange(50) % 7

  def both(loss):
    return jax.value_and_grad(lambda z: loss(z, labels).sum())(logits)

  optax_loss = optax.softmax_cross_entropy_with_integer_labels
  ours, theirs = both(losses.cross_entropy), both(optax_loss)
  np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
  np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


def test_success():
  # A tie goes to the first class, as argmax does it.
  np.testing.assert_array_equal(
    losses.succeeded(LOGITS, LABELS), [False, True, False]
  )
  np.testing.assert_array_equal(
    losses.succeeded(LOGITS, LABELS, targeted=True), [True, False, True]
  )
  broken = LOGITS.at[:, 0].set(jnp.nan)
  for targeted in (False, True):
    assert not jnp.any(losses.succeeded(broken, LABELS, targeted=targeted))


def test_margin_has_a_gradient_where_cross_entropy_has_none():
  slope = lambda loss: jax.grad(lambda z: loss(z, LABELS[:1])[0])
  sure = jnp.array([[0.0, 200.0, 0.0]])
  assert jnp.abs(slope(losses.cross_entropy)(sure)).max() == 0
  assert jnp.abs(slope(losses.margin)(sure)).max() == 1


def test_margin_at_a_tie_sees_the_class_behind():
  # The second class may be a copy of the first, whose lead never changes.
  tied = jnp.array([[2.0, 2.0, 0.0], [2.0, 2.0, 1.0], [2.0, 1.9, 1.0]])
  labels = jnp.zeros(3, jnp.int32)
  values = losses.margin(tied, labels)
  assert -1e-5 < values[0] < values[1] < 0
  np.testing.assert_allclose(values[2], -0.1, rtol=1e-5)
  slope = jax.grad(lambda z: losses.margin(z, labels).sum())(tied)
  np.testing.assert_array_equal(slope, [[-2, 1, 1], [-2, 1, 1], [-1, 1, 0]])
  # A tie in which the label is not predicted, or with all classes, is one.
  np.testing.assert_array_equal(losses.margin(tied, labels + 1)[:2], 0)
  np.testing.assert_array_equal(losses.margin(0 * tied, labels), 0)
  slope = jax.grad(lambda z: losses.margin(z, labels).sum())(0 * tied)
  np.testing.assert_array_equal(slope, [[-1, 0.5, 0.5]] * 3)


def test_the_hinge_at_a_tie_is_what_the_other_classes_lack():
  tied = jnp.array([[2.0, 2.0, 0.5]] * 2)
  # The first is predicted: no success for its label, one for its copy's.
  missing, hit = const_search.hinge(
    tied, jnp.array([0, 1]), jnp.zeros(2), targeted=False
  )
  np.testing.assert_array_equal(missing, [1.5, 0])
  np.testing.assert_array_equal(hit, [False, True])
  # Nobody leads who ties.
  for confidence, expected in (0.0, True), (0.1, False):
    _, hit = const_search.hinge(
      tied[:1], jnp.zeros(1, int), jnp.full(1, confidence), targeted=True
    )
    assert hit[0] == expected


def test_difference_of_logits_ratio_counts_equal_logits_once():
  twice = jnp.concatenate([FOUR, FOUR], axis=1)
  labels, targets = jnp.array([0, 2]), jnp.array([2, 1])
  plain, doubled = (
    losses.targeted_dlr(logits, labels, targets) for logits in (FOUR, twice)
  )
  np.testing.assert_array_equal(plain, doubled)
  slope = jax.grad(lambda z: losses.dlr(z, labels).sum())(twice)
  assert jnp.all(jnp.abs(slope).max(axis=1) > 0.1)


def test_masked_classes_are_none_to_dlr():
  masked = jnp.array([[2.0, 1.0, 0.5, -jnp.inf]])
  labels = jnp.array([0])
  assert losses.dlr(masked, labels) == pytest.approx(-1 / 1.5)
  slope = jax.grad(lambda z: losses.dlr(z, labels).sum())
  two = jnp.array([[2.0, 1.0, -jnp.inf, -jnp.inf]])
  assert losses.dlr(two, labels) == -1.0
  np.testing.assert_array_equal(slope(two)[0, :2], [-1.0, 1.0])
