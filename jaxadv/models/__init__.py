"""Backbones: chains of named stages, and a registry of them.

A backbone `module` computes logits, `module.apply(variables, images)`, or a
stretch of its stages, `module.apply(variables, x, start=..., stop=...)`; with
`train=True` BatchNorm uses the statistics of the batch. Images must have gone
through the backbone's `preprocess` (a `Classifier` does that itself).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxadv.classifier import Normalise
from jaxadv.errors import UserError
from jaxadv.models.chain import split_variables, stage_names
from jaxadv.models.densenet import DenseNet
from jaxadv.models.inception import InceptionV3
from jaxadv.models.mobilenet import MobileNet
from jaxadv.models.resnet import (
  CifarResNet,
  resnet18,
  resnet50,
  resnet152,
  resnext50,
)
from jaxadv.models.vgg import DEPTHS, VGG
from jaxadv.models.xception import Xception
from jaxadv.types import PyTree

__all__ = [
  'BACKBONES',
  'PUBLISHED',
  'Backbone',
  'build',
  'init_variables',
  'split_variables',
  'stage_names',
]


class Backbone(NamedTuple):
  """What is known of a kind of network.

  Attributes:
    name: Its name in the registry.
    make: `(num_classes, width, image_size, **options) -> module`.
    split: The last stage of the frozen prefix of a detector.
    features: The last stage before pooling and dense layers.
    min_size: The smallest side of an image that it takes.
    preprocess: From [0, 1] to what published weights expect.
    saliency: The stage whose maps Grad-CAM reads; the last one that leaves at
      least 4x4 cells of a 32x32 picture, or of the smallest that it takes.
    image_size: The side of the images of published weights.
    published: The data set that published weights were trained on.
    from_scratch: Options of `make` for a network without published weights,
      such as BatchNorm, without which small data do not train a VGG.
    learning_rate: Of Adam, in a training from scratch.
    batch_size: Pictures a step in a training from scratch on a thousand or so.
      A narrow MobileNet learns next to nothing from few steps or small ones,
      and the early layers of a narrow VGG lose sight of noise with more.
  """

  name: str
  make: Callable[..., nn.Module]
  split: str
  features: str
  min_size: int
  preprocess: Callable[[jax.Array], jax.Array]
  saliency: str
  image_size: int = 224
  published: str = 'imagenet'
  from_scratch: dict[str, Any] = {}
  learning_rate: float = 1e-3
  batch_size: int = 32


def caffe_preprocess(images: jax.Array) -> jax.Array:
  """Maps RGB in [0, 1] to BGR in [0, 255] less the ImageNet mean, as Keras.

  Args:
    images: float32[B, H, W, 3] in [0, 1], RGB.

  Returns:
    float32[B, H, W, 3].
  """
  mean = jnp.asarray((103.939, 116.779, 123.68), images.dtype)
  return images[..., ::-1] * 255 - mean


def _make_vgg(
  depths: tuple[int, ...],
  num_classes: int,
  width: float,
  image_size: int,
  **options,
) -> nn.Module:
  published = image_size == 224 and width == 1.0
  options = {'head': 'dense' if published else 'pool'} | options
  return VGG(depths, num_classes, width, **options)


def _make_plain(
  network: Callable[..., nn.Module],
  num_classes: int,
  width: float,
  image_size: int,
  **options,
) -> nn.Module:
  del image_size  # one form for all
  return network(num_classes=num_classes, width=width, **options)


def _make_strided(
  network: Callable[..., nn.Module],
  num_classes: int,
  width: float,
  image_size: int,
  **options,
) -> nn.Module:
  """Makes a network with a stem that has less stride on small pictures."""
  options = {'small_input': image_size < 64} | options
  return network(num_classes=num_classes, width=width, **options)


# Residual blocks in each stack of the ResNets for CIFAR.
_CIFAR_DEPTHS = {'resnet20': 3, 'resnet32': 5, 'resnet44': 7, 'resnet56': 9}
_imagenet_normalise = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


BACKBONES: dict[str, Backbone] = (
  {
    name: Backbone(
      name=name,
      make=partial(_make_vgg, DEPTHS[name]),
      split='block3',
      features='block5',
      min_size=16,
      preprocess=caffe_preprocess,
      saliency='block3',
      from_scratch={'batch_norm': True, 'head': 'pool'},
    )
    for name in DEPTHS
  }
  | {
    'mobilenet': Backbone(
      name='mobilenet',
      make=partial(_make_strided, MobileNet),
      split='block5',
      features='block13',
      min_size=16,
      preprocess=Normalise((0.5,) * 3, (0.5,) * 3),
      saliency='block11',
      learning_rate=5e-3,
      batch_size=8,
    ),
    'densenet121': Backbone(
      name='densenet121',
      make=partial(_make_strided, DenseNet),
      split='conv3_block8',
      features='bn',
      min_size=16,
      preprocess=_imagenet_normalise,
      saliency='bn',
    ),
  }
  | {
    name: Backbone(
      name=name,
      make=partial(_make_strided, network),
      split=split,
      features=last,
      min_size=16,
      preprocess=preprocess,
      saliency=last,
    )
    for name, network, split, last, preprocess in (
      ('resnet18', resnet18, 'layer2_1', 'layer4_1', _imagenet_normalise),
      ('resnet50', resnet50, 'conv3_block4', 'conv5_block3', caffe_preprocess),
      (
        'resnet152',
        resnet152,
        'conv3_block8',
        'conv5_block3',
        caffe_preprocess,
      ),
      ('resnext50', resnext50, 'layer2_3', 'layer4_2', _imagenet_normalise),
    )
  }
  | {
    name: Backbone(
      name=name,
      make=partial(_make_plain, partial(CifarResNet, depth=depth)),
      split=f'layer2_{depth - 1}',
      features=f'layer3_{depth - 1}',
      min_size=16,
      preprocess=_imagenet_normalise,
      saliency=f'layer3_{depth - 1}',
      image_size=32,
      published='cifar10',
    )
    for name, depth in _CIFAR_DEPTHS.items()
  }
  | {
    'inceptionv3': Backbone(
      name='inceptionv3',
      make=partial(_make_plain, InceptionV3),
      split='mixed2',
      features='mixed10',
      min_size=75,
      preprocess=Normalise((0.5,) * 3, (0.5,) * 3),
      saliency='mixed2',
      image_size=299,
    ),
    'xception': Backbone(
      name='xception',
      make=partial(_make_plain, Xception),
      split='block3',
      features='block14',
      min_size=71,
      preprocess=Normalise((0.5,) * 3, (0.5,) * 3),
      saliency='block12',
      image_size=299,
    ),
  }
)
"""The backbones by name."""

PUBLISHED = tuple(dict.fromkeys(each.published for each in BACKBONES.values()))
"""The names of published weights, those of the data sets behind them."""


def build(
  name: str,
  *,
  num_classes: int,
  width: float = 1.0,
  image_size: int = 224,
  **options,
) -> nn.Module:
  """Builds a backbone.

  Args:
    name: One of `BACKBONES`.
    num_classes: Number of logits.
    width: Multiplies the channels; the published networks have 1.0.
    image_size: Side of the square images, in pixels.
    **options: Attributes of the module: `batch_norm`, `head` ('dense' or
      'pool') for VGG, where 'dense' is the default of the published size
      only; `small_input` for MobileNet, DenseNet and ResNet, by default True
      below 64 pixels.

  Returns:
    A Linen module, not yet initialised.

  Raises:
    UserError: If the name is unknown, or the size, width or number of classes
      is one that the backbone cannot take.
  """
  backbone = get_backbone(name)
  if image_size < backbone.min_size:
    raise UserError(
      f'{name} cannot take images of {image_size}x{image_size} pixels; give '
      f'it at least {backbone.min_size}x{backbone.min_size}'
    )
  if width <= 0:
    raise UserError(f'width is {width}; give a number above 0')
  if num_classes < 1:
    raise UserError(f'num_classes is {num_classes}; give 1 or more')
  return backbone.make(num_classes, width, image_size, **options)


def get_backbone(name: str) -> Backbone:
  """Looks a backbone up.

  Args:
    name: One of `BACKBONES`.

  Returns:
    The backbone.

  Raises:
    UserError: If there is none of that name.
  """
  if name not in BACKBONES:
    raise UserError(
      f'unknown backbone {name!r}; choose one of {", ".join(BACKBONES)}'
    )
  return BACKBONES[name]


def init_variables(
  key: jax.Array, module: nn.Module, image_size: int, channels: int = 3
) -> PyTree:
  """Draws the initial variables of a backbone.

  Args:
    key: One key.
    module: The backbone.
    image_size: Side of the square images, in pixels.
    channels: Of the images.

  Returns:
    `{'params': ...}`, with `'batch_stats'` if the module has BatchNorm.
  """
  images = jnp.zeros((1, image_size, image_size, channels), jnp.float32)
  return jax.jit(module.init)(key, images)
