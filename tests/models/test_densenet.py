"""DenseNet121: where its splits are, the sides of its maps."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import models


def _kernels(stage):
  """Number of convolutions and dense layers among the variables of a stage."""
  return sum('kernel' in layer for layer in stage.values())


def _module_and_shapes(size, width=1.0):
  module = models.build(
    'densenet121', num_classes=5, width=width, image_size=size
  )
  shapes = jax.eval_shape(
    lambda: models.init_variables(jax.random.key(0), module, size)
  )
  return module, shapes


def test_both_readings_of_the_first_110_layers():
  module, shapes = _module_and_shapes(224)
  params = shapes['params']
  counted = {name: _kernels(params[name]) for name in params}
  assert sum(counted.values()) == 121
  # Keras counting: the default. Stem, block 1, transition, 8 of 12 layers.
  split = models.BACKBONES['densenet121'].split
  prefix, _ = models.split_variables(module, shapes, split)
  assert sum(counted[name] for name in prefix['params']) == 1 + 12 + 1 + 16
  # Layers with weights: ten convolutions and the classifier are left.
  prefix, suffix = models.split_variables(module, shapes, 'conv5_block11')
  assert sum(counted[name] for name in prefix['params']) == 110
  assert sum(counted[name] for name in suffix['params']) == 10 + 1


def test_shapes_of_maps():
  backbone = models.BACKBONES['densenet121']
  for size, split, last in ((32, 16, 4), (224, 28, 7)):
    module, shapes = _module_and_shapes(size)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    for stage, shape in (
      (backbone.split, (split, split, 128 + 8 * 32)),
      (backbone.features, (last, last, 1024)),
    ):
      maps = jax.eval_shape(
        lambda v, x, stage=stage, module=module: module.apply(v, x, stop=stage),
        shapes,
        images,
      )
      assert maps.shape[1:] == shape


def test_a_dense_layer_passes_its_input_on():
  module = models.build(
    'densenet121', num_classes=2, width=0.1, image_size=32, depths=(2, 1, 1, 1)
  )
  variables = models.init_variables(jax.random.key(0), module, 32)
  x = jax.random.normal(jax.random.key(1), (2, 8, 8, 6))
  before, after = jax.jit(
    lambda x: [
      module.apply(variables, x, start='stem', stop=stage)
      for stage in ('conv2_block1', 'conv2_block2')
    ]
  )(x)
  assert after.shape[-1] == 6 + 2 * 3
  np.testing.assert_array_equal(before[..., :6], x)
  np.testing.assert_array_equal(after[..., :9], before)
  assert np.asarray(after[..., 9:]).std() > 0.1
