import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import norms
from jaxadv.errors import UserError
from jaxadv.types import picture_keys


@pytest.fixture
def delta(key):
  return jax.random.normal(key, (50, 5, 5, 3))


def test_norms_equal_numpy(delta):
  flat = np.asarray(delta, np.float64).reshape(50, -1)
  np.testing.assert_allclose(norms.linf(delta), np.abs(flat).max(axis=1))
  np.testing.assert_allclose(
    norms.l2(delta), np.linalg.norm(flat, axis=1), rtol=1e-6
  )


def test_l2_of_a_row_does_not_depend_on_its_batch(key):
  delta = jax.random.normal(key, (50, 8, 8, 3))
  together = jax.jit(norms.l2)(delta)
  for size in (7, 25):
    np.testing.assert_array_equal(
      jax.jit(norms.l2)(delta[:size]), together[:size]
    )


@pytest.mark.parametrize('name', norms.BALLS)
def test_projection(name, delta):
  epsilon = jnp.linspace(0.01, 1, 50)
  ball = norms.ball(name, 0.5)
  inside = ball.project(delta, epsilon)
  np.testing.assert_allclose(ball.distance(inside), epsilon, rtol=1e-6)
  np.testing.assert_array_equal(ball.project(delta, 1000 + epsilon), delta)
  # The nearest point: no other point of the ball is nearer.
  others = ball.project(inside + 0.01 * delta[::-1], epsilon)
  assert jnp.all(norms.l2(others - delta) >= norms.l2(inside - delta) - 1e-5)


@pytest.mark.parametrize(('name', 'dual'), [('linf', 1), ('l2', 2)])
def test_steepest_reaches_the_dual_norm(name, dual, delta):
  ball = norms.ball(name, 0.5)
  step = ball.steepest(delta)
  np.testing.assert_allclose(ball.distance(step), 1, rtol=1e-6)
  flat = delta.reshape(50, -1)
  gain = jnp.sum(step.reshape(50, -1) * flat, axis=1)
  bound = jnp.linalg.norm(flat, ord=dual, axis=1)
  np.testing.assert_allclose(gain, bound, rtol=1e-5)


@pytest.mark.parametrize('scale', [1e-30, 1e30])
def test_directions_survive_tiny_and_huge_gradients(scale, delta):
  np.testing.assert_allclose(
    norms.unit_l2(scale * delta), norms.unit_l2(delta), rtol=1e-5
  )
  np.testing.assert_array_equal(norms.unit_l2(0 * delta), 0)


@pytest.mark.parametrize('name', norms.BALLS)
def test_samples_fill_the_ball_and_go_by_key(name, key):
  keys = picture_keys(key, jnp.arange(400))
  ball = norms.ball(name, 0.5)
  epsilon = jnp.full(400, 0.3)
  draw = jax.jit(ball.sample, static_argnums=1)
  sample = draw(keys, (400, 2, 2, 1), epsilon)
  size = ball.distance(sample)
  assert size.max() <= 0.3 * (1 + 1e-6)
  # Uniform in four dimensions: P(size < r) = (r / epsilon) ** 4.
  assert abs((size < 0.25).mean() - (0.25 / 0.3) ** 4) < 0.08
  assert jnp.abs(sample.mean(axis=0)).max() < 0.03
  some = draw(keys[7:9], (2, 2, 2, 1), epsilon[7:9])
  np.testing.assert_array_equal(some, sample[7:9])


def test_radii_are_checked():
  for epsilon in (0, -0.1, 1.5, float('nan'), np.array([0.1, 2.0])):
    with pytest.raises(UserError, match='epsilon'):
      norms.linf_ball(epsilon)
  with pytest.raises(UserError, match='epsilon'):
    norms.l2_ball(0)
  with pytest.raises(UserError, match='linf, l2'):
    norms.ball('l1', 0.1)
  norms.l2_ball(40.0)
