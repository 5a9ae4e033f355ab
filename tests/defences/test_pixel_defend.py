"""PixelDefend against a direct loop, and what purified pictures keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.defences.pixel_defend import pixel_defend
from jaxadv.errors import UserError
from jaxadv.models.pixelcnn import PixelCNN, init_pixelcnn, level_logits
from jaxadv.units import to_float, to_uint8

RADIUS = 20


@functools.cache
def network(channels=3):
  """Untrained, but peaked: the most probable level changes all over."""
  module = PixelCNN(
    num_filters=3, num_blocks=0, num_mixtures=2, channels=channels
  )
  init = functools.partial(init_pixelcnn, module=module)
  params = jax.jit(init)(jax.random.key(0))['params']
  rows = params['head']['bias'].reshape(-1, 2)
  scales = rows.at[1 + channels : 1 + 2 * channels].add(-3)
  params['head']['bias'] = scales.ravel()
  return module, params


def pictures(seed, num, channels=3):
  rng = np.random.default_rng(seed)
  levels = rng.integers(0, 256, (num, 8, 4, channels))
  levels[:, ::2] = np.where(levels[:, ::2] > 127, 255, 0)
  return to_float(jnp.asarray(levels.astype(np.uint8)))


@functools.cache
def purifier(radius=RADIUS, channels=3):
  module, params = network(channels)
  purify = pixel_defend(module, radius).purify
  return jax.jit(lambda images: purify(None, None, params, images))


def direct(images, radius, channels):
  """One whole pass for every channel of every pixel; int[B, H, W, C]."""
  module, params = network(channels)

  @jax.jit
  def logits(images):
    return level_logits(module.apply({'params': params}, images), images)

  levels = np.asarray(to_uint8(images)).astype(int)
  for row, column, channel in np.ndindex(levels.shape[1:]):
    found = np.array(logits(jnp.asarray(levels / 255, jnp.float32)))
    found = found[:, row, column, channel]
    own = levels[:, row, column, channel, None]
    found[np.abs(np.arange(256) - own) > radius] = -np.inf
    levels[:, row, column, channel] = found.argmax(axis=-1)
  return levels


@pytest.mark.parametrize(
  'radius, channels',
  [(255, 1), pytest.param(RADIUS, 3, marks=pytest.mark.slow)],
)
def test_equals_a_loop_over_channels_with_whole_passes(radius, channels):
  images = pictures(0, 2, channels)
  found = np.asarray(to_uint8(purifier(radius, channels)(images)))
  wanted = direct(images, radius, channels)
  np.testing.assert_array_equal(found, wanted)
  change = np.abs(wanted - np.asarray(to_uint8(images)).astype(int))
  assert 0 < np.mean((change > 0) & (change < radius))


def test_stays_within_the_radius_and_in_range_and_repeats_itself():
  images = pictures(1, 2)
  found = purifier()(images)
  assert (found == purifier()(images)).all()
  assert found.min() >= 0 and found.max() <= 1
  change = jnp.abs(found - images) * 255
  assert float(change.max()) == pytest.approx(RADIUS, abs=1e-3)
  np.testing.assert_array_equal(to_float(to_uint8(found)), found)


def test_a_picture_that_is_the_mode_stays():
  # With every level in reach the mode comes out, whatever went in.
  whole = purifier(255, 1)
  mode = whole(pictures(2, 2, 1))
  np.testing.assert_array_equal(mode[0], mode[1])
  np.testing.assert_array_equal(whole(mode), mode)


def test_pictures_are_rounded_to_8_bit_first():
  images = pictures(3, 2)
  between = jnp.clip(images + 0.3 / 255, 0, 1)
  np.testing.assert_array_equal(purifier()(between), purifier()(images))


def test_a_radius_out_of_range_is_refused():
  with pytest.raises(UserError, match='radius'):
    pixel_defend(PixelCNN(), 256)
