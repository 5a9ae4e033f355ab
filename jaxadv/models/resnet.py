"""ResNet and ResNeXt, as Keras and as torchvision publish them, and for CIFAR.

He et al., Deep Residual Learning for Image Recognition, 2016,
https://arxiv.org/abs/1512.03385, table 1 and section 4.2; Xie et al.,
Aggregated Residual Transformations for Deep Neural Networks, 2017,
https://arxiv.org/abs/1611.05431, table 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxadv.models import chain
from jaxadv.models.layers import Conv, max_pool, relu


class Layout(NamedTuple):
  """How a library names and builds the layers of a ResNet.

  Attributes:
    block: Name of a stage, from `stack` and `number`.
    first: The first `stack` and the first `number`.
    stem: Names of the convolution and the BatchNorm of the stem.
    unit: Those of number `n` in a `block`.
    shortcut: Those of the shortcut of a `block`; none for one without
      parameters, which pads the channels.
    head: Name of the dense layer.
    bias: Whether convolutions have one.
    epsilon: Of BatchNorm.
    striding: Which of the three convolutions of a bottleneck has the stride.
  """

  block: str
  first: tuple[int, int]
  stem: tuple[str, str]
  unit: tuple[str, str]
  shortcut: tuple[str, str] | None
  head: str
  bias: bool
  epsilon: float
  striding: int


KERAS = Layout(
  block='conv{stack}_block{number}',
  first=(2, 1),
  stem=('conv1_conv', 'conv1_bn'),
  unit=('{block}_{n}_conv', '{block}_{n}_bn'),
  shortcut=('{block}_0_conv', '{block}_0_bn'),
  head='predictions',
  bias=True,
  epsilon=1.001e-5,
  striding=1,
)
"""Names of keras.applications; the stride where the paper has it."""

TORCH = Layout(
  block='layer{stack}_{number}',
  first=(1, 0),
  stem=('conv1', 'bn1'),
  unit=('{block}_conv{n}', '{block}_bn{n}'),
  shortcut=('{block}_downsample_0', '{block}_downsample_1'),
  head='fc',
  bias=False,
  epsilon=1e-5,
  striding=2,
)
"""Names of torchvision with _ for its dots; the stride in the 3x3 ("v1.5")."""

CIFAR = TORCH._replace(shortcut=None, head='linear')
"""Names of the published networks for CIFAR-10, with _ for their dots."""


class ResNet(chain.Chain):
  """A ResNet; stages stem, one for each residual block, and head.

  Attributes:
    depths: Residual blocks in each of the four stacks.
    layout: `KERAS` or `TORCH`.
    bottleneck: Whether blocks are 1x1, 3x3, 1x1 with four times the channels
      at the end, in place of two 3x3.
    group_width: Channels of each group of the 3x3 of a bottleneck in the first
      stack; 0 for no groups.
    groups: Number of groups, if there are any.
    num_classes: Number of logits.
    width: Multiplies the channels; with groups it is their number that
      changes, not their size.
    small_input: Whether the stem has stride 1 and no pooling, so that a 32x32
      picture leaves the last block as a 4x4 map in place of 1x1.
  """

  depths: tuple[int, ...] = (3, 4, 6, 3)
  layout: Layout = KERAS
  bottleneck: bool = True
  group_width: int = 0
  groups: int = 32
  num_classes: int = 1000
  width: float = 1.0
  small_input: bool = False

  @nn.nowrap
  def stages(self) -> dict[str, Callable[..., Any]]:
    """Gives the constructors of the stages, in order."""
    stages: dict[str, Callable[..., Any]] = {
      'stem': partial(
        _Stem,
        features=self._channels(0),
        layout=self.layout,
        small_input=self.small_input,
      )
    }
    first_stack, first_number = self.layout.first
    for stack, depth in enumerate(self.depths):
      for number in range(depth):
        name = self.layout.block.format(
          stack=stack + first_stack, number=number + first_number
        )
        stages[name] = partial(
          _Block,
          convolutions=self._convolutions(stack, first=number == 0),
          layout=self.layout,
        )
    head = partial(
      chain.PoolHead, num_classes=self.num_classes, layer=self.layout.head
    )
    return stages | {'head': head}

  @nn.nowrap
  def _channels(self, stack: int) -> int:
    return max(1, int(64 * 2**stack * self.width))

  @nn.nowrap
  def _convolutions(self, stack: int, first: bool) -> tuple[_Convolution, ...]:
    stride = 2 if first and stack else 1
    channels = self._channels(stack)
    if not self.bottleneck:
      return _Convolution(channels, 3, stride), _Convolution(channels, 3)
    inner, groups = channels, 1
    if self.group_width:
      groups = max(1, int(self.groups * self.width))
      inner = groups * self.group_width * 2**stack
    strides = [1, 1, 1]
    strides[self.layout.striding - 1] = stride
    return (
      _Convolution(inner, 1, strides[0]),
      _Convolution(inner, 3, strides[1], groups),
      _Convolution(4 * channels, 1, strides[2]),
    )


resnet18 = partial(ResNet, depths=(2, 2, 2, 2), layout=TORCH, bottleneck=False)
resnet50 = ResNet
resnet152 = partial(ResNet, depths=(3, 8, 36, 3))
resnext50 = partial(ResNet, layout=TORCH, group_width=4)


class CifarResNet(chain.Chain):
  """The ResNet of section 4.2 for small pictures; stages as those of `ResNet`.

  Three stacks of 16, 32 and 64 channels on maps of the picture's side, half
  and a quarter of it; 6 `depth` + 2 layers.

  Attributes:
    depth: Residual blocks in each stack.
    num_classes: Number of logits.
    width: Multiplies the channels.
  """

  depth: int = 3
  num_classes: int = 10
  width: float = 1.0

  @nn.nowrap
  def stages(self) -> dict[str, Callable[..., Any]]:
    """Gives the constructors of the stages, in order."""
    channels = [max(1, int(16 * 2**stack * self.width)) for stack in range(3)]
    stages: dict[str, Callable[..., Any]] = {
      'stem': partial(
        _Stem, features=channels[0], layout=CIFAR, small_input=True, size=3
      )
    }
    for stack, features in enumerate(channels):
      for number in range(self.depth):
        stride = 2 if stack and not number else 1
        name = CIFAR.block.format(stack=stack + 1, number=number)
        stages[name] = partial(
          _Block,
          convolutions=(
            _Convolution(features, 3, stride),
            _Convolution(features, 3),
          ),
          layout=CIFAR,
        )
    head = partial(
      chain.PoolHead, num_classes=self.num_classes, layer=CIFAR.head
    )
    return stages | {'head': head}


class _Convolution(NamedTuple):
  features: int
  size: int
  stride: int = 1
  groups: int = 1


def _unit(
  x: jax.Array,
  names: tuple[str, str],
  convolution: _Convolution,
  layout: Layout,
  train: bool,
) -> jax.Array:
  """Convolution and BatchNorm in the compact method that calls it."""
  features, size, stride, groups = convolution
  x = Conv(
    features,
    (size, size),
    strides=(stride, stride),
    padding=((size // 2, size // 2),) * 2,
    feature_group_count=groups,
    use_bias=layout.bias,
    kernel_init=nn.initializers.he_normal(),
    name=names[0],
  )(x)
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=layout.epsilon,
    name=names[1],
  )(x)


class _Stem(nn.Module):
  features: int
  layout: Layout
  small_input: bool
  size: int = 7

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    stride = 1 if self.small_input else 2
    convolution = _Convolution(self.features, self.size, stride)
    x = _unit(x, self.layout.stem, convolution, self.layout, train)
    if not self.small_input:
      # Before its ReLU, which commutes, on a quarter of it.
      x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    return relu(x)


class _Block(nn.Module):
  convolutions: tuple[_Convolution, ...]
  layout: Layout

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    def unit(x, templates, convolution, n=0):
      names = tuple(each.format(block=self.name, n=n) for each in templates)
      return _unit(x, names, convolution, self.layout, train)

    last = self.convolutions[-1].features
    stride = max(convolution.stride for convolution in self.convolutions)
    shortcut = x
    if self.layout.shortcut is None:
      shortcut = _padded(x, last, stride)
    elif stride > 1 or x.shape[-1] != last:
      convolution = _Convolution(last, 1, stride)
      shortcut = unit(x, self.layout.shortcut, convolution)
    for n, convolution in enumerate(self.convolutions, start=1):
      x = unit(x, self.layout.unit, convolution, n)
      if n < len(self.convolutions):
        x = relu(x)
    return relu(x + shortcut)


def _padded(x: jax.Array, features: int, stride: int) -> jax.Array:
  """Takes every `stride`-th pixel, and puts zeros on both sides of channels."""
  more = features - x.shape[-1]
  return jnp.pad(
    x[:, ::stride, ::stride],
    ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)),
  )
