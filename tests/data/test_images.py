import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxadv import inputs
from jaxadv.data import images


def _pictures(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_eight_bits_survive_float_and_back_on_host_and_device_alike():
  levels = np.arange(256, dtype=np.uint8)
  floats = inputs.to_float(levels)
  assert floats.dtype == np.float32
  assert floats[0] == 0 and floats[255] == 1 and np.all(np.diff(floats) > 0)
  np.testing.assert_allclose(floats, levels / 255, rtol=1e-6)
  np.testing.assert_array_equal(inputs.to_uint8(floats), levels)
  on_device = jax.jit(inputs.to_float)(jnp.asarray(levels))
  np.testing.assert_array_equal(on_device, floats)
  back = jax.jit(inputs.to_uint8)(on_device)
  assert back.dtype == np.uint8
  np.testing.assert_array_equal(back, levels)


def test_rounding_is_half_to_even_and_clips():
  values = np.array([-0.2, 0.5 / 255, 1.5 / 255, 2.5 / 255, 1.7], np.float32)
  expected = [0, 0, 2, 2, 255]
  np.testing.assert_array_equal(inputs.to_uint8(values), expected)
  np.testing.assert_array_equal(inputs.to_uint8(jnp.asarray(values)), expected)


def test_resize_takes_the_central_square():
  pictures = np.zeros((2, 8, 14, 3), np.uint8)
  pictures[:, :, 3:11] = _pictures(2, 8, 8, 3)
  np.testing.assert_array_equal(
    images.resize(pictures, 8), pictures[:, :, 3:11]
  )


@pytest.mark.parametrize('channels', [1, 3])
def test_resize_is_antialiased_and_keeps_the_mean(channels):
  # A checkerboard: without antialiasing, halving it gives black or white.
  board = np.indices((32, 32)).sum(axis=0) % 2 * 255
  board = np.repeat(board[None, ..., None], channels, -1).astype(np.uint8)
  small = images.resize(board, 8)
  assert small.shape == (1, 8, 8, channels)
  assert np.all(np.abs(small[:, 1:-1, 1:-1].astype(int) - 127) <= 2)


def test_identity_when_the_size_is_right():
  pictures = _pictures(2, 6, 6, 3)
  np.testing.assert_array_equal(images.resize(pictures, 6), pictures)


@pytest.mark.parametrize('channels', [1, 3])
def test_png_loses_nothing(channels):
  pixels = _pictures(5, 7, channels)
  decoded = images.decode(images.encode(pixels), channels)
  np.testing.assert_array_equal(decoded, pixels)


def test_decode_and_arrays_take_the_same_path():
  pixels = _pictures(20, 30, 3)
  np.testing.assert_array_equal(
    images.decode(images.encode(pixels), 1, 16),
    images.resize(images.with_channels(pixels[None], 1), 16)[0],
  )


def test_channels():
  grey = _pictures(2, 4, 4, 1)
  colour = images.with_channels(grey, 3)
  np.testing.assert_array_equal(colour, np.concatenate([grey] * 3, -1))
  np.testing.assert_array_equal(images.with_channels(colour, 1), grey)


def test_broken_and_deep_pictures_are_refused():
  encoded = images.encode(_pictures(16, 16, 3))
  for broken in (b'', b'text', encoded[: len(encoded) // 2]):
    with pytest.raises(ValueError, match='PNG or JPEG'):
      images.decode(broken)
  file = io.BytesIO()
  Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(file, 'PNG')
  with pytest.raises(ValueError, match='8-bit'):
    images.decode(file.getvalue())
