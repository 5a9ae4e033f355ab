"""ResNets: torchvision's logits, sizes of maps, the layouts, CIFAR."""

import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import models
from jaxadv.models.weights import formats

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'resnet_golden.npz'


def _shapes(module, size):
  return jax.eval_shape(
    lambda: models.init_variables(jax.random.key(0), module, size)
  )


@pytest.mark.parametrize('name', ['resnet18', 'resnext50'])
def test_logits_equal_those_of_pytorch(name):
  # Written by golden/make_resnet_golden.py.
  with np.load(GOLDEN) as golden:
    images = golden['images'].astype(np.float32)
    arrays = {
      key.removeprefix(f'{name}/'): golden[key]
      for key in golden
      if key.startswith(f'{name}/')
    }
  expected = arrays.pop('logits')
  module = models.build(name, num_classes=10, width=1 / 16, image_size=64)
  variables = formats.to_variables(
    'torchvision', arrays, _shapes(module, 64), source=name
  )
  logits = jax.jit(module.apply)(variables, images)
  assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
  assert np.abs(expected[0] - expected[1]).max() > 1e-2


@pytest.mark.parametrize(
  'name, size, split, last',
  [
    *(
      (name, *sides)
      for name in ('resnet18', 'resnet50', 'resnext50')
      for sides in ((32, 16, 4), (224, 28, 7))
    ),
    ('resnet20', 32, 16, 8),
  ],
)
def test_sides_of_maps(name, size, split, last):
  backbone = models.BACKBONES[name]
  module = models.build(name, num_classes=2, width=0.1, image_size=size)
  variables = _shapes(module, size)
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  for stage, side in ((backbone.split, split), (backbone.features, last)):
    maps = jax.eval_shape(
      lambda v, x, stage=stage: module.apply(v, x, stop=stage),
      variables,
      images,
    )
    assert maps.shape[1:3] == (side, side)


def test_width_changes_the_number_of_groups_not_their_size():
  kernels = [
    _shapes(
      models.build('resnext50', num_classes=2, width=width, image_size=32), 32
    )['params']['layer2_0']['layer2_0_conv2']['kernel'].shape
    for width in (1, 0.25)
  ]
  assert kernels == [(3, 3, 8, 256), (3, 3, 8, 64)]


@pytest.mark.parametrize(
  'name, count',
  [
    ('resnet20', 269_722),
    ('resnet32', 464_154),
    ('resnet44', 658_586),
    ('resnet56', 853_018),
  ],
)
def test_published_parameter_counts_for_cifar(name, count):
  module = models.build(name, num_classes=10, image_size=32)
  params = _shapes(module, 32)['params']
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
  kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
  assert len(kernels) == int(name.removeprefix('resnet'))


def _cifar_state(random, channels):
  """Random arrays under the published names, one block a stack."""
  first, *_, last = channels
  convolutions = {'': {1: (first, 3)}}
  for stack, (before, after) in enumerate(
    zip((first, *channels), channels, strict=False), start=1
  ):
    convolutions[f'layer{stack}.0.'] = {1: (after, before), 2: (after, after)}
  state = {
    'linear.weight': random.normal(size=(10, last)),
    'linear.bias': random.normal(size=10),
  }
  for start, shapes in convolutions.items():
    for n, (outputs, inputs) in shapes.items():
      state[f'{start}conv{n}.weight'] = random.normal(
        0, (2 / 9 / inputs) ** 0.5, (outputs, inputs, 3, 3)
      )
      state |= {
        f'{start}bn{n}.weight': random.uniform(0.5, 1.5, outputs),
        f'{start}bn{n}.bias': random.normal(size=outputs),
        f'{start}bn{n}.running_mean': random.normal(size=outputs),
        f'{start}bn{n}.running_var': random.uniform(0.5, 1.5, outputs),
      }
  return state


def _unit(state, start, n, x, stride=1):
  """Convolution and BatchNorm of float64[B, C, H, W], written out."""
  windows = np.lib.stride_tricks.sliding_window_view(
    np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3)
  )[:, :, ::stride, ::stride]
  kernel = state[f'{start}conv{n}.weight']
  x = np.einsum('bihwyx,oiyx->bohw', windows, kernel)
  weight, bias, mean, var = (
    state[f'{start}bn{n}.{leaf}'][:, None, None]
    for leaf in ('weight', 'bias', 'running_mean', 'running_var')
  )
  return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def test_logits_for_cifar_equal_those_written_out():
  random = np.random.default_rng(0)
  # At this width the channels before and after differ by odd numbers, too.
  channels = 5, 11, 22
  state = _cifar_state(random, channels)
  images = random.normal(size=(3, 18, 18, 3))
  module = models.build(
    'resnet20', num_classes=10, width=0.35, image_size=18, depth=1
  )
  variables = formats.to_variables(
    'torchvision', state, _shapes(module, 18), source='here'
  )

  x = np.maximum(_unit(state, '', 1, images.transpose(0, 3, 1, 2)), 0)
  for stack, features in enumerate(channels, start=1):
    start, stride = f'layer{stack}.0.', 1 if stack == 1 else 2
    shortcut = np.zeros((3, features, *x[0, 0, ::stride, ::stride].shape))
    low = (features - x.shape[1]) // 2
    shortcut[:, low : low + x.shape[1]] = x[:, :, ::stride, ::stride]
    x = np.maximum(_unit(state, start, 1, x, stride), 0)
    x = np.maximum(_unit(state, start, 2, x) + shortcut, 0)
  expected = x.mean((2, 3)) @ state['linear.weight'].T + state['linear.bias']

  logits = jax.jit(module.apply)(variables, images.astype(np.float32))
  assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
  assert np.abs(expected[0] - expected[1]).max() > 0.1


def test_published_shortcuts_pad_evenly():
  module = models.build('resnet20', num_classes=10, image_size=32)
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), _shapes(module, 32))
  x = np.random.default_rng(0).random((1, 4, 4, 16), np.float32)
  block = partial(module.apply, start='layer1_2', stop='layer2_0')
  found = jax.jit(block)(zeros, x)
  expected = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (8, 8)))
  np.testing.assert_array_equal(found, expected)
