import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.saliency.gradcam import gradcam

WEIGHTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def _front(images):
  return images[:, ::2, ::2]


def _pooled(layer):
  return jnp.mean(layer, axis=(1, 2)) @ WEIGHTS


def _images(n=5, size=8):
  rng = np.random.default_rng(1)
  return rng.uniform(size=(n, size, size, 3)).astype(np.float32)


def test_map_of_a_pooled_linear_network_in_closed_form():
  # The gradient of the logit is the class's weights over the number of places.
  images, labels = _images(), np.array([0, 1, 2, 3, 0])
  maps = jax.jit(lambda x, y: gradcam(_front, _pooled, x, y))(images, labels)
  scores = np.einsum('bhwc,cb->bhw', images[:, ::2, ::2], WEIGHTS[:, labels])
  expected = np.array(
    jax.image.resize(np.maximum(scores, 0), (5, 8, 8), 'linear')
  )
  largest = expected.max(axis=(1, 2), keepdims=True)
  expected = np.where(largest > 0, expected / np.maximum(largest, 1e-9), 0)
  np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_gradients_are_averaged_over_space():
  # Only one place counts for the logit, yet the weight holds everywhere.
  back = lambda layer: layer[:, 0, 0] @ WEIGHTS
  images, labels = _images(), np.array([0, 1, 2, 3, 0])
  np.testing.assert_allclose(
    gradcam(_front, back, images, labels),
    gradcam(_front, _pooled, images, labels),
    atol=1e-5,
  )


def test_range_and_rows_that_nothing_speaks_for():
  images = _images()
  against = lambda layer: -jnp.mean(layer, axis=(1, 2))
  maps = gradcam(_front, against, images, np.zeros(5, int))
  np.testing.assert_array_equal(maps, np.zeros((5, 8, 8)))
  in_favour = lambda layer: jnp.mean(layer, axis=(1, 2))
  maps = gradcam(_front, in_favour, images, np.zeros(5, int))
  assert maps.shape == (5, 8, 8) and np.min(maps) >= 0
  np.testing.assert_allclose(np.max(maps, axis=(1, 2)), 1)


def test_rows_do_not_depend_on_each_other():
  images, labels = _images(), np.array([0, 1, 2, 3, 0])
  whole = gradcam(_front, _pooled, images, labels)
  part = gradcam(_front, _pooled, images[2:4], labels[2:4])
  np.testing.assert_allclose(whole[2:4], part, atol=1e-6)
