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


@pytest.mark.parametrize('name', ['vgg11', 'resnet18'])
def test_backbones_follow_it(name):
  module = models.build(name, num_classes=2, width=1 / 16, image_size=16)
  images = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3))
  variables = models.init_variables(jax.random.key(1), module, 16)
  apply = jax.jit(module.apply)
  sharp = apply(variables, images)
  with smooth_relu(1.0):
    assert np.abs(apply(variables, images) - sharp).max() > 1e-3
