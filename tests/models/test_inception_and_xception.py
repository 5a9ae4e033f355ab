"""InceptionV3 and Xception: sizes, parts, layers, names of published files."""

import math

import chex
import flax.linen as nn
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxadv import models
from jaxadv.errors import UserError
from jaxadv.models import inception, xception
from jaxadv.models.weights import formats

NAMES = ('inceptionv3', 'xception')


@pytest.mark.parametrize(
  'name, count, split, features',
  [
    ('inceptionv3', 23_851_784, (35, 35, 288), (8, 8, 2048)),
    ('xception', 22_910_480, (37, 37, 256), (10, 10, 2048)),
  ],
)
def test_published_sizes(name, count, split, features):
  backbone = models.BACKBONES[name]
  size = backbone.image_size
  module = models.build(name, num_classes=1000, image_size=size)

  def maps(image):
    variables = module.init(jax.random.key(0), image)
    at_split = module.apply(variables, image, stop=backbone.split)
    return (
      variables,
      at_split,
      module.apply(
        variables, at_split, start=backbone.split, stop=backbone.features
      ),
    )

  variables, *found = jax.eval_shape(maps, jnp.zeros((1, size, size, 3)))
  leaves = jax.tree.leaves(variables)
  assert sum(math.prod(leaf.shape) for leaf in leaves) == count
  assert [each.shape[1:] for each in found] == [split, features]


def _random(shapes):
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: random.uniform(0.1, 1, leaf.shape).astype(np.float32), shapes
  )


def _template(name):
  backbone = models.BACKBONES[name]
  size = backbone.min_size
  module = models.build(name, num_classes=3, width=0.05, image_size=size)
  shapes = jax.eval_shape(
    lambda: models.init_variables(jax.random.key(0), module, size)
  )
  return module, _random(shapes)


@pytest.fixture(scope='module', params=NAMES)
def network(request):
  return request.param, *_template(request.param)


def test_running_in_parts_equals_running_at_once(network):
  name, module, variables = network
  # Centred kernels, or every map would be as good as constant.
  variables = jax.tree.map(
    lambda leaf: leaf - leaf.mean() if leaf.ndim > 1 else leaf, variables
  )
  backbone = models.BACKBONES[name]
  prefix, suffix = models.split_variables(module, variables, backbone.split)
  size = backbone.min_size
  images = jax.random.uniform(jax.random.key(1), (2, size, size, 3))

  @jax.jit
  def first(images):
    return module.apply(prefix, images, stop=backbone.split)

  @jax.jit
  def second(maps):
    return module.apply(suffix, maps, start=backbone.split)

  logits = jax.jit(module.apply)(variables, images)
  scale = np.abs(logits).max()
  assert np.abs(logits[0] - logits[1]).max() > 1e-3 * scale
  np.testing.assert_allclose(
    second(first(images)), logits, rtol=1e-4, atol=1e-5 * scale
  )


def test_averages_may_follow_the_convolution():
  x = _random(jax.ShapeDtypeStruct((2, 5, 5, 6), jnp.float32))
  block = inception._Mixed(inception._large(32), 0.1, first=6)
  variables = _random(
    jax.eval_shape(lambda: block.init(jax.random.key(0), x, False))
  )
  kernel = variables['params']['conv2d_12']['kernel']
  shift = variables['params']['batch_normalization_12']['bias']
  mean, var = (
    variables['batch_stats']['batch_normalization_12'][name]
    for name in ('mean', 'var')
  )

  @jax.jit
  def as_keras(x):
    x = nn.avg_pool(x, (3, 3), (1, 1), 'SAME', count_include_pad=False)
    return nn.relu((x @ kernel[0, 0] - mean) / np.sqrt(var + 1e-3) + shift)

  found = jax.jit(lambda x: block.apply(variables, x, False))(x)
  assert found.shape[-1] == 6 + 6 + 9 + 3
  assert as_keras(x).std() > 0.01
  np.testing.assert_allclose(found[..., -3:], as_keras(x), atol=1e-5)


def test_separable_convolution_is_one_of_rank_one_kernels():
  x = _random(jax.ShapeDtypeStruct((2, 7, 5, 4), jnp.float32))
  layer = xception._SeparableConv(6)
  variables = _random(jax.eval_shape(layer.init, jax.random.key(0), x))
  each, across = (
    variables['params'][f'{kind}wise_kernel'] for kind in ('depth', 'point')
  )
  kernel = each[:, :, 0, :, None] * across[0, 0]
  expected = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  found = jax.jit(layer.apply)(variables, x)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def _keras_arrays(variables):
  """Our variables as Keras would name and shape them, written out by hand."""
  arrays = {}
  for (*_, layer, leaf), value in traverse_util.flatten_dict(variables).items():
    if 'batch_normalization' in layer or layer.endswith('_bn'):
      leaf = {
        'scale': 'gamma',
        'bias': 'beta',
        'mean': 'moving_mean',
        'var': 'moving_variance',
      }[leaf]
    if leaf == 'depthwise_kernel':
      value = value.transpose(0, 1, 3, 2)
    arrays[layer, leaf] = value
  return arrays


def _write(path, arrays, weight_name):
  """Writes the layout of Keras 2; layers stand in no order that matters."""
  with h5py.File(path, 'w') as file:
    layers = sorted({layer for layer, _ in arrays}, reverse=True)
    file.attrs['layer_names'] = [layer.encode() for layer in layers]
    for layer in layers:
      group = file.create_group(layer)
      names = {
        weight_name(layer, leaf): value
        for (of, leaf), value in arrays.items()
        if of == layer
      }
      for name, value in names.items():
        group[name] = value
      group.attrs['weight_names'] = [name.encode() for name in names]


def _load(path, template):
  return formats.to_variables(*formats.read(path), template, source=path)


def test_published_files(network, tmp_path):
  _, _, variables = network
  arrays = _keras_arrays(variables)
  path = tmp_path / 'w.h5'
  _write(path, arrays, lambda layer, leaf: f'{layer}/{leaf}:0')
  chex.assert_trees_all_equal(_load(path, variables), variables)


def test_files_of_keras_1(network, tmp_path):
  _, _, variables = network
  old = {'moving_mean': 'running_mean', 'moving_variance': 'running_std'}
  arrays = {
    (
      layer.replace('conv2d_', 'convolution2d_').replace(
        'batch_normalization', 'batchnormalization'
      ),
      'W' if leaf == 'kernel' and 'conv' in layer else old.get(leaf, leaf),
    ): value
    for (layer, leaf), value in _keras_arrays(variables).items()
  }
  path = tmp_path / 'w.h5'
  _write(path, arrays, lambda layer, leaf: f'{layer}_{leaf}_1:0')
  chex.assert_trees_all_equal(_load(path, variables), variables)


def _in_a_long_process(variables):
  """Names as of the second model of a process, or the first in Keras 3."""

  def later(layer, by):
    kind, _, number = layer.rpartition('_')
    if kind not in ('conv2d', 'batch_normalization'):
      return layer
    return f'{kind}_{int(number) + by}' if int(number) + by else kind

  return [
    {
      f'{later(layer, by)}/{leaf}': value
      for (layer, leaf), value in _keras_arrays(variables).items()
    }
    for by in (-1, 93)
  ]


def test_automatic_names_count_from_anywhere(network):
  _, _, variables = network
  for arrays in _in_a_long_process(variables):
    found = formats.to_variables('keras', arrays, variables, source='here')
    chex.assert_trees_all_equal(found, variables)


def test_automatic_names_that_do_not_fit(network):
  _, _, variables = network
  arrays, _ = _in_a_long_process(variables)
  fewer = {name: v for name, v in arrays.items() if name != 'conv2d_2/kernel'}
  with pytest.raises(UserError, match=r'missing: conv2d_(4|94)/kernel'):
    formats.to_variables('keras', fewer, variables, source='here')
  a, b = 'conv2d_1/kernel', 'conv2d_2/kernel'
  swapped = arrays | {a: arrays[b], b: arrays[a]}
  with pytest.raises(UserError, match=r'conv2d_\d/kernel of here has the sh'):
    formats.to_variables('keras', swapped, variables, source='here')


@pytest.mark.parametrize('name, least', [('inceptionv3', 75), ('xception', 71)])
def test_smaller_pictures_are_refused(name, least):
  with pytest.raises(UserError, match=f'at least {least}x{least}'):
    models.build(name, num_classes=3, image_size=least - 1)
