import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import models
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


def test_a_backbone_is_cut_at_its_saliency_stage():
  stage = models.get_backbone('vgg11').saliency
  net = models.build('vgg11', num_classes=4, width=0.0625, image_size=32)
  variables = models.init_variables(jax.random.key(0), net, 32)
  images, labels = _images(3, 32), np.array([0, 3, 1])
  front = jax.jit(lambda x: net.apply(variables, x, stop=stage))
  back = jax.jit(lambda h: net.apply(variables, h, start=stage))
  logits = jax.jit(net.apply)(variables, images)
  np.testing.assert_allclose(back(front(images)), logits, atol=1e-5)
  maps = gradcam(front, back, images, labels)
  # Finite differences stand in for the gradient of the logit.
  layer = front(images)
  slopes = np.zeros((3, layer.shape[-1]))
  for channel in range(layer.shape[-1]):
    moved = [
      np.asarray(back(layer.at[..., channel].add(step)))
      for step in (-0.01, 0.01)
    ]
    slopes[:, channel] = (moved[1] - moved[0])[np.arange(3), labels] / 0.02
  expected = np.maximum(np.einsum('bhwc,bc->bhw', layer, slopes), 0)
  expected = np.array(jax.image.resize(expected, (3, 32, 32), 'linear'))
  largest = expected.max(axis=(1, 2), keepdims=True)
  assert np.all(largest > 0)
  np.testing.assert_allclose(maps, expected / largest, atol=0.05)
