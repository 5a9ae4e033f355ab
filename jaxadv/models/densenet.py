"""DenseNet (Huang et al., 2017, https://arxiv.org/abs/1608.06993)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxadv.models import chain
from jaxadv.models.layers import Conv, avg_pool, max_pool


class DenseNet(chain.Chain):
  """DenseNet-BC with the layer names and the epsilon of Keras.

  Stages are stem; every dense layer, conv2_block1 to conv5_block16, which
  gives its input with its own channels behind; the transitions pool2 to pool4;
  bn, the last normalisation and ReLU; and head. Of DenseNet121's 121 layers
  with weights the first 110 end at conv5_block11.

  Attributes:
    depths: Dense layers in each of the four blocks; DenseNet121 by default.
    num_classes: Number of logits.
    width: Multiplies the channels of the stem and the growth rate.
    small_input: Whether the stem has stride 1 and no pooling, so that a 32x32
      picture leaves the last block as a 4x4 map in place of 1x1.
  """

  depths: tuple[int, ...] = (6, 12, 24, 16)
  num_classes: int = 1000
  width: float = 1.0
  small_input: bool = False

  @nn.nowrap
  def stages(self) -> dict[str, Callable[..., Any]]:
    """Gives the constructors of the stages, in order."""
    stages: dict[str, Callable[..., Any]] = {
      'stem': partial(
        _Stem,
        features=max(1, int(64 * self.width)),
        small_input=self.small_input,
      )
    }
    layer = partial(_DenseLayer, growth=max(1, int(32 * self.width)))
    for block, depth in enumerate(self.depths, start=2):
      if block > 2:
        stages[f'pool{block - 1}'] = _Transition
      for number in range(1, depth + 1):
        stages[f'conv{block}_block{number}'] = layer
    head = partial(chain.PoolHead, num_classes=self.num_classes)
    return stages | {'bn': _Normalisation, 'head': head}


def _normalise(x: jax.Array, name: str, train: bool) -> jax.Array:
  """BatchNorm in the compact method that calls it."""
  return nn.BatchNorm(
    use_running_average=not train, momentum=0.9, epsilon=1.001e-5, name=name
  )(x)


_Conv = partial(Conv, use_bias=False, kernel_init=nn.initializers.he_normal())


class _Stem(nn.Module):
  features: int
  small_input: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = _Conv(
      self.features,
      (7, 7),
      strides=(1, 1) if self.small_input else (2, 2),
      padding=((3, 3), (3, 3)),
      name='conv1_conv',
    )(x)
    x = _normalise(x, 'conv1_bn', train)
    if not self.small_input:
      # Before its ReLU, which commutes, on a quarter of it.
      x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    return nn.relu(x)


class _DenseLayer(nn.Module):
  growth: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    new = nn.relu(_normalise(x, f'{self.name}_0_bn', train))
    new = _Conv(4 * self.growth, (1, 1), name=f'{self.name}_1_conv')(new)
    new = nn.relu(_normalise(new, f'{self.name}_1_bn', train))
    new = _Conv(self.growth, (3, 3), name=f'{self.name}_2_conv')(new)
    return jnp.concatenate([x, new], axis=-1)


class _Transition(nn.Module):
  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = nn.relu(_normalise(x, f'{self.name}_bn', train))
    # The 1x1 convolution commutes with the pooling and costs a quarter after.
    x = avg_pool(x)
    return _Conv(x.shape[-1] // 2, (1, 1), name=f'{self.name}_conv')(x)


class _Normalisation(nn.Module):
  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    return nn.relu(_normalise(x, 'bn', train))
