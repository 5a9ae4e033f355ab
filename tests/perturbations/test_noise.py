import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxadv.errors import UserError
from jaxadv.perturbations.noise import FILTERS, filter_noise
from jaxadv.types import picture_keys

# SciPy's 'mirror' is NumPy's 'reflect': the edge pixel is not repeated.
REFERENCE = {
  'gaussian': lambda x: scipy.ndimage.gaussian_filter(
    x, 1.0, radius=2, mode='mirror'
  ),
  'laplacian': lambda x: scipy.ndimage.laplace(x, mode='mirror'),
  'integral': lambda x: scipy.ndimage.uniform_filter(x, 5, mode='mirror'),
}


def reference(name, images):
  filtered = np.zeros(images.shape)
  for row in range(images.shape[0]):
    for channel in range(images.shape[3]):
      plane = np.asarray(images[row, :, :, channel], np.float64)
      filtered[row, :, :, channel] = REFERENCE[name](plane)
  return filtered


@pytest.fixture
def images(key):
  return jax.random.uniform(key, (3, 9, 7, 3))


@pytest.mark.parametrize('name', FILTERS)
@pytest.mark.parametrize(('sign', 'gain'), [(1, 1.0), (-1, 1.0), (1, 0.3)])
def test_equals_scipy(name, sign, gain, images, key, variant):
  filtered = reference(name, images)
  expected = np.clip(images + sign * gain * (images - filtered), 0, 1)
  perturb = filter_noise(sign, filter=name, gain=gain)
  keys = picture_keys(key, jnp.arange(3))
  result = variant(perturb)(keys, images)
  np.testing.assert_allclose(result, expected, atol=1e-6)


def test_mixed_draws_a_filter_for_each_picture(key):
  images = jax.random.uniform(key, (30, 8, 8, 1))
  keys = picture_keys(key, jnp.arange(30))
  perturb = jax.jit(filter_noise(-1, filter='mixed'))
  mixed = perturb(keys, images)
  alone = [np.clip(reference(name, images), 0, 1) for name in FILTERS]
  same = np.array(
    [np.isclose(mixed, one, atol=1e-6).all((1, 2, 3)) for one in alone]
  )
  np.testing.assert_array_equal(same.sum(axis=0), 1)
  assert same.sum(axis=1).min() >= 4
  some = perturb(keys[5:9], images[5:9])
  np.testing.assert_array_equal(some, mixed[5:9])


def test_no_gain_changes_nothing(images, key):
  keys = picture_keys(key, jnp.arange(3))
  same = filter_noise(1, filter='laplacian', gain=0)(keys, images)
  np.testing.assert_array_equal(same, images)


def test_refuses_other_signs():
  with pytest.raises(UserError, match='sign is 0'):
    filter_noise(0)


def test_pictures_of_8_bits_are_those_in_floats(images, key):
  keys = picture_keys(key, jnp.arange(3))
  levels = np.asarray(jnp.round(images * 255), np.uint8)
  sharpen = filter_noise(1)
  np.testing.assert_allclose(
    sharpen(keys, levels), sharpen(keys, levels / 255), atol=1e-6
  )
  with pytest.raises(UserError, match='divide by 255'):
    sharpen(keys, levels.astype(np.float32))
