"""InceptionV3 (Szegedy et al., 2016, https://arxiv.org/abs/1512.00567)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxadv.models import chain
from jaxadv.models.layers import Conv, Pair, avg_pool, max_pool

# Channels and windows; the outputs of several windows are laid side by side.
_Unit = tuple[int, *tuple[Pair, ...]]


class Spec(NamedTuple):
  """A mixed block, by the channels of its convolutions at width 1.

  Attributes:
    branches: The convolutions of each branch but that of the pooling.
    pooled: Channels of the convolution of the averages; 0 for a block that
      halves the map with stride 2 at the end of each branch and maxima.
  """

  branches: tuple[tuple[_Unit, ...], ...]
  pooled: int = 0

  def convolutions(self) -> int:
    """Gives the number of convolutions."""
    windows = sum(len(unit) - 1 for branch in self.branches for unit in branch)
    return windows + bool(self.pooled)


def _large(pooled: int) -> Spec:
  """Figure 5 of the paper, with 5x5 kept in one branch."""
  return Spec(
    (
      ((64, (1, 1)),),
      ((48, (1, 1)), (64, (5, 5))),
      ((64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
    ),
    pooled,
  )


def _factored(inner: int) -> Spec:
  """Figure 6: 7x7 as 1x7 and 7x1."""
  down, across = (7, 1), (1, 7)
  return Spec(
    (
      ((192, (1, 1)),),
      ((inner, (1, 1)), (inner, across), (192, down)),
      (
        (inner, (1, 1)),
        *((inner, window) for window in (down, across, down)),
        (192, across),
      ),
    ),
    192,
  )


_FORKED = Spec(  # figure 7
  (
    ((320, (1, 1)),),
    ((384, (1, 1)), (384, (1, 3), (3, 1))),
    ((448, (1, 1)), (384, (3, 3)), (384, (1, 3), (3, 1))),
  ),
  192,
)
_MIXED = (
  _large(32),
  _large(64),
  _large(64),
  Spec((((384, (3, 3)),), ((64, (1, 1)), (96, (3, 3)), (96, (3, 3))))),
  *(_factored(inner) for inner in (128, 160, 160, 192)),
  Spec(
    (
      ((192, (1, 1)), (320, (3, 3))),
      ((192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, (3, 3))),
    )
  ),
  _FORKED,
  _FORKED,
)
_STEM_COUNT = 5


class InceptionV3(chain.Chain):
  """InceptionV3 as in Keras; stages stem, mixed0 to mixed10 and head.

  Its layers are called as in the weights that Keras publishes, conv2d_1 to
  conv2d_94 and batch_normalization_1 to batch_normalization_94, counted from
  the image on and branch by branch. BatchNorm has no scale.

  Attributes:
    num_classes: Number of logits.
    width: Multiplies all channels.
  """

  num_classes: int = 1000
  width: float = 1.0

  @nn.nowrap
  def stages(self) -> dict[str, Callable[..., Any]]:
    """Gives the constructors of the stages, in order."""
    stages: dict[str, Callable[..., Any]] = {
      'stem': partial(_Stem, width=self.width)
    }
    first = _STEM_COUNT + 1
    for number, spec in enumerate(_MIXED):
      stages[f'mixed{number}'] = partial(
        _Mixed, spec=spec, width=self.width, first=first
      )
      first += spec.convolutions()
    head = partial(chain.PoolHead, num_classes=self.num_classes)
    return stages | {'head': head}


def _unit(
  numbers: Iterator[int],
  width: float,
  train: bool,
  x: jax.Array,
  unit: _Unit,
  *,
  stride: int = 1,
  padding: str = 'SAME',
  pool: bool = False,
) -> jax.Array:
  """Convolutions, BatchNorm and ReLU in the compact method that calls it."""
  features, *windows = unit
  outputs = []
  for window in windows:
    number = next(numbers)
    y = Conv(
      max(1, int(features * width)),
      window,
      strides=(stride, stride),
      padding=padding,
      use_bias=False,
      kernel_init=nn.initializers.he_normal(),
      name=f'conv2d_{number}',
    )(x)
    if pool:
      y = avg_pool(y, (3, 3), (1, 1), 'SAME', count_include_pad=False)
    y = nn.BatchNorm(
      use_running_average=not train,
      momentum=0.9,
      epsilon=1e-3,
      use_scale=False,
      name=f'batch_normalization_{number}',
    )(y)
    outputs.append(nn.relu(y))
  return jnp.concatenate(outputs, axis=-1)


class _Stem(nn.Module):
  width: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    unit = partial(_unit, itertools.count(1), self.width, train)
    x = unit(x, (32, (3, 3)), stride=2, padding='VALID')
    x = unit(x, (32, (3, 3)), padding='VALID')
    x = unit(x, (64, (3, 3)))
    x = max_pool(x, (3, 3), (2, 2))
    x = unit(x, (80, (1, 1)))
    x = unit(x, (192, (3, 3)), padding='VALID')
    return max_pool(x, (3, 3), (2, 2))


class _Mixed(nn.Module):
  spec: Spec
  width: float
  first: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    unit = partial(_unit, itertools.count(self.first), self.width, train)
    branches, pooled = self.spec
    stride, padding = (1, 'SAME') if pooled else (2, 'VALID')
    parts = []
    for *units, last in branches:
      y = x
      for each in units:
        y = unit(y, each)
      parts.append(unit(y, last, stride=stride, padding=padding))
    if pooled:
      # Keras averages first; a 1x1 convolution commutes and leaves less.
      parts.append(unit(x, (pooled, (1, 1)), pool=True))
    else:
      parts.append(max_pool(x, (3, 3), (2, 2)))
    return jnp.concatenate(parts, axis=-1)
