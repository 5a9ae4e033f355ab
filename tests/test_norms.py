import chex
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


def test_norms_equal_numpy(delta, variant):
  flat = np.asarray(delta, np.float64).reshape(50, -1)
  np.testing.assert_allclose(
    variant(norms.linf)(delta), np.abs(flat).max(axis=1)
  )
  np.testing.assert_allclose(
    variant(norms.l2)(delta), np.linalg.norm(flat, axis=1), rtol=1e-6
  )
  np.testing.assert_allclose(
    variant(norms.l1)(delta), np.abs(flat).sum(axis=1), rtol=1e-6
  )


@pytest.mark.parametrize('norm', [norms.l1, norms.l2])
def test_norm_of_a_row_does_not_depend_on_its_batch(norm, key):
  delta = jax.random.normal(key, (50, 8, 8, 3))
  together = jax.jit(norm)(delta)
  for size in (7, 25):
    np.testing.assert_array_equal(jax.jit(norm)(delta[:size]), together[:size])


def test_projection_onto_the_l1_ball_is_soft_thresholding():
  # Worked by hand: (3, -1, 0.5) shrinks by 1 to norm 2, by 0.75 to 2.5.
  delta = jnp.array([[3.0, -1.0, 0.5]] * 3).reshape(3, 1, 1, 3)
  inside = norms.l1_ball(1.0).project(delta, jnp.array([2.0, 2.5, 4.5]))
  expected = [[2, 0, 0], [2.25, -0.25, 0], [3, -1, 0.5]]
  np.testing.assert_allclose(inside[:, 0, 0], expected, atol=1e-6)
  large = 20 * jax.random.normal(jax.random.key(1), (4, 64, 64, 3))
  inside = norms.l1_ball(1.0).project(large, jnp.full(4, 12.0))
  np.testing.assert_allclose(norms.l1(inside), 12, rtol=1e-5)
  assert norms.l1(inside).max() <= 12 * (1 + 1e-6)


def test_l1_step_moves_a_share_of_the_channels_evenly(key):
  gradient = jax.random.normal(key, (5, 10, 10, 1))
  step = norms.l1_ball(1.0, share=0.1).steepest(gradient).reshape(5, -1)
  np.testing.assert_allclose(jnp.abs(step[step != 0]), 0.1, rtol=1e-6)
  assert jnp.all(jnp.sum(step != 0, axis=1) == 10)
  sizes = jnp.abs(gradient).reshape(5, -1)
  left = jnp.where(step == 0, sizes, 0).max(axis=1)
  taken = jnp.where(step != 0, sizes, jnp.inf).min(axis=1)
  assert jnp.all(taken >= left)
  np.testing.assert_array_equal(norms.l1_ball(1.0).steepest(0 * gradient), 0)


def test_directions_out_of_the_box_are_blocked():
  images = jnp.array([0.0, 0.0, 0.5, 1.0, 1.0])
  direction = jnp.array([-1.0, 1.0, -1.0, 1.0, -1.0])
  np.testing.assert_array_equal(
    norms.without_blocked(direction, images), [0, 1, -1, 0, -1]
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


@pytest.mark.parametrize(
  ('name', 'dual'), [('linf', 1), ('l2', 2), ('l1', jnp.inf)]
)
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
  for ball in (norms.l2_ball, norms.l1_ball):
    with pytest.raises(UserError, match='epsilon'):
      ball(0)
  with pytest.raises(UserError, match=r'share is 0 .*\(0, 1\]'):
    norms.l1_ball(1.0, share=0)
  with pytest.raises(UserError, match='linf, l2, l1'):
    norms.ball('l3', 0.1)
  norms.l2_ball(40.0)


def test_radii_are_numbers_or_arrays():
  for build in norms.BALLS.values():
    for epsilon, words in (
      ([0.1, 0.2], 'epsilon is a list of 2 .* evaluate_over'),
      ('8/255', "epsilon is '8/255' but must be a number"),
      (float('inf'), 'epsilon is inf'),
    ):
      with pytest.raises(UserError, match=words):
        build(epsilon)
    build(np.array([0.1, 0.2]))
    build(jnp.bfloat16(0.5))


def test_a_ball_is_given_by_its_radius_or_as_it_is():
  given = norms.l2_ball(0.5)
  assert norms.as_ball(given) is given
  assert norms.as_ball(given, 'l2', allowed=('l2',)) is given
  assert norms.as_ball(0.5)[:2] == ('linf', 0.5)
  assert norms.as_ball(0.5, 'l1')[:2] == ('l1', 0.5)
  with pytest.raises(UserError, match="norm is 'linf' but .* one in l2"):
    norms.as_ball(given, 'linf')
  with pytest.raises(UserError, match='spin works in the norm linf or l1, not'):
    norms.as_ball(given, allowed=('linf', 'l1'), attack='spin')


def test_balls_are_the_same_with_64_bits(key):
  def numbers():
    keys = picture_keys(key, jnp.arange(3))
    epsilon = jnp.full(3, 0.3, jnp.float32)
    made = [build(0.5) for build in norms.BALLS.values()]
    samples = [ball.sample(keys, (3, 2, 2, 1), epsilon) for ball in made]
    return samples, [
      (ball.steepest(sample), ball.project(sample, epsilon))
      for ball, sample in zip(made, samples, strict=True)
    ]

  expected = jax.jit(numbers)()
  with jax.enable_x64(True):
    found = jax.jit(numbers)()
  chex.assert_trees_all_equal(found, expected, strict=True)
