"""MobileNet v1 (Howard et al., 2017, https://arxiv.org/abs/1704.04861)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxadv.models import chain
from jaxadv.models.layers import Conv

# Output channels and stride of the 13 depthwise blocks, table 1 of the paper.
_BLOCKS = (
  (64, 1),
  (128, 2),
  (128, 1),
  (256, 2),
  (256, 1),
  (512, 2),
  *((512, 1),) * 5,
  (1024, 2),
  (1024, 1),
)


class MobileNet(chain.Chain):
  """MobileNet v1 with the layer names, padding and epsilon of Keras.

  Stages stem, block1 to block13 and head. Stride 2 pads below and right only.

  Attributes:
    num_classes: Number of logits.
    width: Multiplies all channels (alpha in the paper).
    small_input: Whether the stem has stride 1 in place of 2, so that a 32x32
      picture leaves block13 as a 2x2 map in place of 1x1.
  """

  num_classes: int = 1000
  width: float = 1.0
  small_input: bool = False

  @nn.nowrap
  def stages(self) -> dict[str, Callable[..., Any]]:
    """Gives the constructors of the stages, in order."""
    blocks: dict[str, Callable[..., Any]] = {
      f'block{number}': partial(
        _Block,
        number=number,
        features=max(1, int(features * self.width)),
        stride=stride,
      )
      for number, (features, stride) in enumerate(_BLOCKS, start=1)
    }
    stem = partial(
      _Stem,
      features=max(1, int(32 * self.width)),
      stride=1 if self.small_input else 2,
    )
    head = partial(_Head, num_classes=self.num_classes)
    return {'stem': stem} | blocks | {'head': head}


def _unit(
  x: jax.Array,
  name: str,
  features: int,
  size: int,
  train: bool,
  *,
  stride: int = 1,
  depthwise: bool = False,
) -> jax.Array:
  """Convolution, BatchNorm and relu6 in the compact method that calls it."""
  low, high = (size // 2, size // 2) if stride == 1 else (0, size // 2)
  x = Conv(
    features,
    (size, size),
    strides=(stride, stride),
    padding=((low, high), (low, high)),
    feature_group_count=features if depthwise else 1,
    use_bias=False,
    kernel_init=nn.initializers.he_normal(),
    name=name,
  )(x)
  x = nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-3,
    name=f'{name}_bn',
  )(x)
  return nn.relu6(x)


class _Stem(nn.Module):
  features: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    return _unit(x, 'conv1', self.features, 3, train, stride=self.stride)


class _Block(nn.Module):
  number: int
  features: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = _unit(
      x,
      f'conv_dw_{self.number}',
      x.shape[-1],
      3,
      train,
      stride=self.stride,
      depthwise=True,
    )
    return _unit(x, f'conv_pw_{self.number}', self.features, 1, train)


class _Head(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    pooled = jnp.mean(x, axis=(1, 2), keepdims=True)
    logits = Conv(self.num_classes, (1, 1), name='conv_preds')(pooled)
    return logits[:, 0, 0]
