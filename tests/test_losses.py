import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxadv import losses

LOGITS = jnp.array([[1.0, 3.0, 2.0], [0.0, -1.0, 4.0], [2.0, 2.0, 0.0]])
LABELS = jnp.array([1, 0, 0])


def test_values():
  np.testing.assert_allclose(losses.margin(LOGITS, LABELS), [-1, 4, 0])
  chosen = jax.nn.softmax(LOGITS)[jnp.arange(3), LABELS]
  np.testing.assert_allclose(
    losses.cross_entropy(LOGITS, LABELS), -jnp.log(chosen), rtol=1e-6
  )


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
