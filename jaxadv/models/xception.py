"""Xception (Chollet, 2017, https://arxiv.org/abs/1610.02357)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jaxadv.models import chain
from jaxadv.models.layers import Conv, conv, max_pool


class Spec(NamedTuple):
  """A block of separable convolutions, by its channels at width 1.

  Attributes:
    features: Channels of each convolution.
    relu: Whether a ReLU stands before 'all' of them, the 'later' ones, or
      after each ('after').
    shortcut: What is added: the input ('input'), a convolution of it with
      stride 2, in which case the rest is pooled ('halved'), or None.
  """

  features: tuple[int, ...]
  relu: str = 'all'
  shortcut: str | None = 'input'


# Figure 5 of the paper; block 1 is the stem.
_BLOCKS = (
  Spec((128, 128), 'later', 'halved'),
  Spec((256, 256), shortcut='halved'),
  Spec((728, 728), shortcut='halved'),
  *(Spec((728,) * 3),) * 8,
  Spec((728, 1024), shortcut='halved'),
  Spec((1536, 2048), 'after', None),
)


class Xception(chain.Chain):
  """Xception as in Keras; stages block1 to block14 and head.

  Its layers are called as in Keras. The four shortcut convolutions, which
  have no names there, are conv2d_1 to conv2d_4 and batch_normalization_1 to
  batch_normalization_4, as in the weights that Keras publishes. Blocks 2 to
  13 end before the ReLU, as the shortcuts do without it.

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
      'block1': partial(_Stem, width=self.width)
    }
    shortcuts = 0
    for number, spec in enumerate(_BLOCKS, start=2):
      shortcuts += spec.shortcut == 'halved'
      stages[f'block{number}'] = partial(
        _Block, spec=spec, width=self.width, shortcuts=shortcuts
      )
    head = partial(chain.PoolHead, num_classes=self.num_classes)
    return stages | {'head': head}


def _channels(features: int, width: float) -> int:
  return max(1, int(features * width))


def _norm(x: jax.Array, name: str, train: bool) -> jax.Array:
  """BatchNorm in the compact method that calls it."""
  return nn.BatchNorm(
    use_running_average=not train, momentum=0.9, epsilon=1e-3, name=name
  )(x)


class _SeparableConv(nn.Module):
  """A 3x3 convolution of each channel, then a 1x1 one across them."""

  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    init = nn.initializers.he_normal()
    depthwise = self.param('depthwise_kernel', init, (3, 3, 1, channels))
    pointwise = self.param(
      'pointwise_kernel', init, (1, 1, channels, self.features)
    )
    x = conv(x, depthwise, feature_group_count=channels)
    return conv(x, pointwise)


class _Stem(nn.Module):
  width: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    for number, (features, stride) in enumerate(((32, 2), (64, 1)), start=1):
      name = f'block1_conv{number}'
      x = Conv(
        _channels(features, self.width),
        (3, 3),
        strides=(stride, stride),
        padding='VALID',
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        name=name,
      )(x)
      x = nn.relu(_norm(x, f'{name}_bn', train))
    return x


class _Block(nn.Module):
  spec: Spec
  width: float
  shortcuts: int  # as far as this block

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    features, relu, shortcut = self.spec
    y = x
    for number, size in enumerate(features, start=1):
      name = f'{self.name}_sepconv{number}'
      if relu == 'all' or relu == 'later' and number > 1:
        y = nn.relu(y)
      y = _SeparableConv(_channels(size, self.width), name=name)(y)
      y = _norm(y, f'{name}_bn', train)
      if relu == 'after':
        y = nn.relu(y)
    if shortcut == 'input':
      return x + y
    if shortcut is None:
      return y
    x = Conv(
      _channels(features[-1], self.width),
      (1, 1),
      strides=(2, 2),
      use_bias=False,
      kernel_init=nn.initializers.he_normal(),
      name=f'conv2d_{self.shortcuts}',
    )(x)
    x = _norm(x, f'batch_normalization_{self.shortcuts}', train)
    return x + max_pool(y, (3, 3), (2, 2), 'SAME')
