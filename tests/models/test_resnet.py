"""ResNets: torchvision's logits, sizes of maps, the two layouts."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import models
from jaxadv.models.weights import torchvision

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
  variables = torchvision.from_arrays(
    arrays, module, _shapes(module, 64), source=name
  )
  logits = jax.jit(module.apply)(variables, images)
  assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
  assert np.abs(expected[0] - expected[1]).max() > 1e-2


@pytest.mark.parametrize('name', ['resnet18', 'resnet50', 'resnext50'])
@pytest.mark.parametrize('size, split, last', [(32, 16, 4), (224, 28, 7)])
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
