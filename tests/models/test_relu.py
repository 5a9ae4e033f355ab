"""The context that makes ReLU smooth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import models
from jaxadv.models.layers import relu, smooth_relu

X = jnp.linspace(-2, 2, 9)


def test_softplus_inside_and_relu_outside_also_when_compiled_before():
  run = jax.jit(relu)
  for _ in range(2):
    np.testing.assert_array_equal(run(X), np.maximum(X, 0))
    with smooth_relu(5.0):
      np.testing.assert_allclose(
        run(X), np.logaddexp(0, 5 * X) / 5, rtol=1e-5, atol=1e-6
      )


@pytest.mark.parametrize('name', ['vgg11', 'vgg11_bn', 'resnet18'])
def test_backbones_have_no_other_relu(name):
  """Seen in what they are traced to."""
  name, _, batch_norm = name.partition('_')
  options = {'batch_norm': True} if batch_norm else {}
  module = models.build(name, num_classes=2, image_size=32, **options)
  images = jnp.zeros((1, 32, 32, 3))
  variables = jax.eval_shape(module.init, jax.random.key(1), images)
  traced = lambda: str(jax.make_jaxpr(module.apply)(variables, images))
  sharp = traced()
  with smooth_relu(10.0):
    smooth = traced()
  assert 'relu' in sharp and 'log1p' not in sharp
  assert 'relu' not in smooth and 'log1p' in smooth
