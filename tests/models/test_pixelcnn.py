"""PixelCNN++: what it may see, and that its probabilities are some."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import logistic

from jaxadv.errors import UserError
from jaxadv.losses import cross_entropy
from jaxadv.models.pixelcnn import (
  PixelCNN,
  bits_per_dim,
  in_raster_order,
  init_pixelcnn,
  level_logits,
  log_likelihood,
)


@functools.cache
def network(channels, num_blocks=0):
  module = PixelCNN(
    num_filters=3, num_blocks=num_blocks, num_mixtures=2, channels=channels
  )
  init = jax.jit(functools.partial(init_pixelcnn, module=module))
  return module, init(jax.random.key(0))['params']


def pictures(seed, *shape):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(0, 256, shape) / 255, jnp.float32)


def apply(module, params, images):
  return jax.jit(module.apply)({'params': params}, images)


def test_a_channel_depends_on_all_that_come_before_and_nothing_else(key):
  module, params = network(3, num_blocks=1)
  image = pictures(0, 1, 8, 4, 3)
  cotangent = jax.random.normal(key, (256,))

  def logits(image):
    parameters = module.apply({'params': params}, image)
    return (level_logits(parameters, image) @ cotangent).ravel()

  jacobian = np.asarray(jax.jit(jax.jacfwd(logits))(image)).reshape(96, 96)
  seen = jacobian != 0
  assert not np.triu(seen).any()
  # What matters less than rounding may come out as 0.
  assert np.tril(seen, -1).sum() > 0.99 * 96 * 95 / 2


def test_one_channel_sees_earlier_pixels_only():
  module, params = network(1)
  before = pictures(0, 2, 4, 4, 1)
  after = before.at[:, 2, 1:].set(pictures(1, 2, 1, 3, 1)[:, 0])
  changed = np.abs(
    apply(module, params, before) - apply(module, params, after)
  ).max(axis=(0, 3))
  place = np.arange(16).reshape(4, 4)
  assert changed[place <= 9].max() < 1e-6
  assert changed[place > 9].min() > 1e-5


def brute_force(parameters, levels):
  """Probabilities of all levels of a pixel, float64[C, 256]."""
  channels = len(levels)
  split = np.asarray(parameters, np.float64).reshape(
    1 + 2 * channels + channels * (channels - 1) // 2, -1
  )
  weights = np.exp(split[0]) / np.exp(split[0]).sum()
  x = levels / 127.5 - 1
  means = split[1 : 1 + channels].copy()
  slopes = np.tanh(split[1 + 2 * channels :])
  if channels == 3:
    means[1] += slopes[0] * x[0]
    means[2] += slopes[1] * x[0] + slopes[2] * x[1]
  scales = np.exp(split[1 + channels : 1 + 2 * channels])
  ends = (np.arange(255) + 0.5) / 127.5 - 1
  cdf = logistic.cdf(ends, means[..., None], scales[..., None])
  cdf = np.pad(cdf, [(0, 0), (0, 0), (1, 1)])
  cdf[..., -1] = 1
  return (weights[:, None] * np.diff(cdf)).sum(axis=1)


@pytest.mark.parametrize('channels', [1, 3])
def test_likelihood_is_the_product_of_all_channels(channels, key):
  images = pictures(0, 2, 4, 4, channels)
  images = images.at[0, 0].set(0).at[0, 1].set(1)
  count = 5 * (10 if channels == 3 else 3)
  parameters = jax.random.normal(key, (2, 4, 4, count))
  logits = np.asarray(jax.jit(level_logits)(parameters, images))
  wanted = np.zeros(2)
  for place in np.ndindex(2, 4, 4):
    levels = np.round(np.asarray(images[place], np.float64) * 255)
    found = brute_force(parameters[place], levels)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(np.exp(logits[place]), found, rtol=1e-3)
    own = found[np.arange(channels), levels.astype(int)]
    wanted[place[0]] += np.log(own).sum()
  likelihood = jax.jit(log_likelihood)(parameters, images)
  np.testing.assert_allclose(likelihood, wanted, rtol=1e-5)
  levels = jnp.round(images * 255).astype(jnp.int32).ravel()
  entropies = cross_entropy(logits.reshape(-1, 256), levels)
  np.testing.assert_allclose(
    -entropies.reshape(2, -1).sum(-1), likelihood, rtol=1e-5
  )


def test_far_from_every_mean_logarithm_and_gradient_stay_finite():
  images = jnp.zeros((1, 1, 1, 1)).at[:].set(1.0)
  # One mixture: its weight, a mean far below, the smallest scale.
  parameters = jnp.array([0.0, -1.0, -9.0]).reshape(1, 1, 1, 3)
  value, gradient = jax.jit(
    jax.value_and_grad(lambda p: log_likelihood(p, images).sum())
  )(parameters)
  # The tail beyond the bin's lower end, at the scale of exp(-7).
  assert value == pytest.approx(-(2 - 1 / 255) * np.exp(7), rel=1e-5)
  assert np.isfinite(gradient).all() and gradient[..., 1] != 0


def test_likelihoods_over_all_values_of_the_last_pixel_add_up():
  module, params = network(1)
  images = jnp.repeat(pictures(0, 1, 4, 4, 1), 256, axis=0)
  images = images.at[:, -1, -1, 0].set(jnp.arange(256) / 255)
  measure = jax.jit(functools.partial(bits_per_dim, module))
  likelihoods = -16 * np.log(2) * measure(params, images)
  # The last pixel is left out of what they add up to.
  parameters = apply(module, params, images)[:2]
  logits = jax.jit(level_logits)(parameters, images[:2])
  last = logits[0, -1, -1, 0, 0]
  np.testing.assert_allclose(
    jax.nn.logsumexp(likelihoods), likelihoods[0] - last, rtol=1e-5
  )


@pytest.mark.parametrize(
  'channels, num_blocks',
  [pytest.param(1, 0, marks=pytest.mark.slow), (3, 1)],
)
def test_a_picture_made_in_raster_order_is_one_of_the_network(
  channels, num_blocks
):
  """Every pixel depends on its parameters, so all of them must be right."""
  module, params = network(channels, num_blocks)

  def choose(parameters, levels):
    own = parameters[..., :channels] + parameters[..., -channels:]
    return jnp.round(127 + 100 * jnp.tanh(own) + 20 * levels)

  given = pictures(3, 2, 8, 4, channels)
  made = jax.jit(lambda given: in_raster_order(module, params, given, choose))(
    given
  )
  assert np.std(made) > 5
  whole = choose(apply(module, params, made / 255), given)
  # A value on the edge may round the other way, a level apart.
  np.testing.assert_allclose(made, whole, atol=1.01)
  assert np.mean(made != whole) < 0.02


def test_pictures_that_cannot_be_halved_twice_are_refused():
  module, params = network(1)
  for shape in ((1, 6, 8, 1), (1, 8, 8, 3)):
    with pytest.raises(UserError, match='divisible by 4'):
      module.apply({'params': params}, jnp.zeros(shape))
    with pytest.raises(UserError, match='divisible by 4'):
      in_raster_order(module, params, jnp.zeros(shape), None)
