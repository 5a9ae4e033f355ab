import colorsys

import jax
import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest

from jaxadv.errors import UserError
from jaxadv.perturbations.colour import hsv_to_rgb, rgb_to_hsv, shift_hsv


@pytest.fixture
def images(key):
  """Random pixels, and all 27 corners, edges and greys of the colour cube."""
  random = jax.random.uniform(key, (4, 8, 8, 3))
  levels = jnp.array([0.0, 0.5, 1.0])
  cube = jnp.stack(jnp.meshgrid(levels, levels, levels), axis=-1)
  corner = jnp.resize(cube.reshape(-1, 3), (1, 8, 8, 3))
  return jnp.concatenate([random, corner])


def test_equals_matplotlib_and_colorsys(images, variant):
  hsv = np.asarray(variant(rgb_to_hsv)(images))
  reference = matplotlib.colors.rgb_to_hsv(np.asarray(images, np.float64))
  np.testing.assert_allclose(hsv, reference, atol=1e-6)
  back = np.asarray(variant(jax.vmap(hsv_to_rgb))(images))
  reference = [colorsys.hsv_to_rgb(*p) for p in np.reshape(images, (-1, 3))]
  np.testing.assert_allclose(np.reshape(back, (-1, 3)), reference, atol=2e-6)


def test_round_trip_and_identity(images):
  np.testing.assert_allclose(
    jax.jit(lambda x: hsv_to_rgb(rgb_to_hsv(x)))(images), images, atol=2e-6
  )
  nothing = jnp.zeros(len(images))
  same = jax.jit(shift_hsv)(images, nothing, nothing)
  np.testing.assert_allclose(same, images, atol=2e-6)


def test_a_third_of_the_circle_permutes_the_channels(images):
  third = jnp.full(len(images), 1 / 3)
  turned = jax.jit(shift_hsv)(images, third, 0 * third)
  # Red becomes green, green blue, blue red.
  np.testing.assert_allclose(turned, jnp.roll(images, 1, axis=-1), atol=3e-6)


def test_without_saturation_all_channels_are_the_brightest(images):
  gone = -jnp.ones(len(images))
  grey = jax.jit(shift_hsv)(images, 0 * gone, gone)
  brightest = jnp.broadcast_to(images.max(-1, keepdims=True), images.shape)
  np.testing.assert_allclose(grey, brightest, atol=1e-6)


def test_each_picture_has_its_own_shift(images):
  hue = jnp.linspace(0, 0.9, len(images))
  saturation = jnp.linspace(-0.5, 0.5, len(images))
  together = jax.jit(shift_hsv)(images, hue, saturation)
  for row in range(len(images)):
    alone = slice(row, row + 1)
    np.testing.assert_allclose(
      together[alone],
      shift_hsv(images[alone], hue[alone], saturation[alone]),
      atol=1e-6,
    )


def test_wants_three_channels():
  with pytest.raises(UserError, match='1 channels'):
    rgb_to_hsv(jnp.ones((2, 4, 4, 1)))


def test_pictures_of_8_bits_are_those_in_floats(images):
  levels = np.asarray(jnp.round(images * 255), np.uint8)
  shift = jnp.full(5, 0.2), jnp.full(5, 0.1)
  np.testing.assert_allclose(
    shift_hsv(levels, *shift), shift_hsv(levels / 255, *shift), atol=1e-6
  )
  with pytest.raises(UserError, match='divide by 255'):
    rgb_to_hsv(levels.astype(np.float32))
