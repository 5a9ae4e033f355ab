"""VGG (Simonyan and Zisserman, 2015, https://arxiv.org/abs/1409.1556)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from jaxadv.models import chain
from jaxadv.models.layers import Conv, max_pool, relu

# Convolutions a block, table 1 of the paper: columns A, B, D and E.
DEPTHS = {
  'vgg11': (1, 1, 2, 2, 2),
  'vgg13': (2, 2, 2, 2, 2),
  'vgg16': (2, 2, 3, 3, 3),
  'vgg19': (2, 2, 4, 4, 4),
}
_WIDTHS = (64, 128, 256, 512, 512)


class VGG(chain.Chain):
  """VGG with the layer names of Keras; stages block1 to block5 and head.

  Blocks 1 to 4 end with their max pooling. That of block 5 belongs to the
  dense head, so that block5 gives the last feature map before pooling.

  Attributes:
    depths: Number of 3x3 convolutions in each of the five blocks.
    num_classes: Number of logits.
    width: Multiplies the channels of the convolutions.
    batch_norm: Whether BatchNorm follows every convolution, which then has no
      bias; the published networks have none, small ones train far better
      with it.
    head: 'dense' for the published 4096-4096-classes on the flattened map,
      'pool' for global average pooling and one dense layer.
  """

  depths: tuple[int, ...] = DEPTHS['vgg16']
  num_classes: int = 1000
  width: float = 1.0
  batch_norm: bool = False
  head: str = 'pool'

  @nn.nowrap
  def stages(self) -> dict[str, Callable[..., Any]]:
    """Gives the constructors of the stages, in order."""
    blocks: dict[str, Callable[..., Any]] = {
      f'block{number}': partial(
        _Block,
        features=max(1, int(width * self.width)),
        depth=depth,
        batch_norm=self.batch_norm,
        pool=number < len(_WIDTHS),
      )
      for number, (width, depth) in enumerate(
        zip(_WIDTHS, self.depths, strict=True), start=1
      )
    }
    head = _DenseHead if self.head == 'dense' else chain.PoolHead
    return blocks | {'head': partial(head, num_classes=self.num_classes)}


class _Block(nn.Module):
  features: int
  depth: int
  batch_norm: bool
  pool: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    for number in range(1, self.depth + 1):
      name = f'{self.name}_conv{number}'
      x = Conv(
        self.features,
        (3, 3),
        use_bias=not self.batch_norm,
        kernel_init=nn.initializers.he_normal(),
        name=name,
      )(x)
      if self.batch_norm:
        x = nn.BatchNorm(
          use_running_average=not train, momentum=0.9, name=f'{name}_bn'
        )(x)
      if self.pool and number == self.depth:
        x = max_pool(x)  # before its ReLU, which commutes, on a quarter of it
      x = relu(x)
    return x


class _DenseHead(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = max_pool(x).reshape(x.shape[0], -1)
    x = relu(nn.Dense(4096, name='fc1')(x))
    x = relu(nn.Dense(4096, name='fc2')(x))
    return nn.Dense(self.num_classes, name='predictions')(x)
