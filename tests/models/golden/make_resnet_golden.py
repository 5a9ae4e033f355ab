"""Writes resnet_golden.npz: weights, pictures and logits of PyTorch networks.

`python tests/models/golden/make_resnet_golden.py` needs the extra `peers`. The
networks are ResNet18 and ResNeXt50 with the layers, the names and the order of
torchvision, a sixteenth as wide, written here in PyTorch alone.
"""

from __future__ import annotations

import pathlib

import numpy as np
import torch
from torch import nn

CLASSES = 10
PLANES = (4, 8, 16, 32)  # 64 to 512 times a sixteenth


class Residual(nn.Module):
  """A basic block (groups 0) or a bottleneck with groups."""

  def __init__(self, inputs: int, planes: int, stride: int, groups: int):
    super().__init__()
    if groups:
      # Groups have 4 channels in the first stack and double with its planes.
      inner, outputs = groups * planes, 4 * planes
      shapes = [(inputs, inner, 1), (inner, inner, 3), (inner, outputs, 1)]
    else:
      outputs = planes
      shapes = [(inputs, planes, 3), (planes, planes, 3)]
    self.relu = nn.ReLU()
    self.depth = len(shapes)
    strided = 2 if groups else 1
    for n, (before, after, size) in enumerate(shapes, start=1):
      convolution = nn.Conv2d(
        before,
        after,
        size,
        stride if n == strided else 1,
        size // 2,
        groups=groups if groups and size == 3 else 1,
        bias=False,
      )
      setattr(self, f'conv{n}', convolution)
      setattr(self, f'bn{n}', nn.BatchNorm2d(after))
    self.downsample = None
    if stride > 1 or inputs != outputs:
      self.downsample = nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride, bias=False),
        nn.BatchNorm2d(outputs),
      )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    shortcut = x if self.downsample is None else self.downsample(x)
    for n in range(1, self.depth + 1):
      x = getattr(self, f'bn{n}')(getattr(self, f'conv{n}')(x))
      x = self.relu(x + shortcut if n == self.depth else x)
    return x


class Network(nn.Module):
  def __init__(self, depths: tuple[int, ...], groups: int):
    super().__init__()
    channels = PLANES[0]
    self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
    self.bn1 = nn.BatchNorm2d(channels)
    self.pool = nn.MaxPool2d(3, 2, 1)
    for stack, (depth, planes) in enumerate(
      zip(depths, PLANES, strict=True), start=1
    ):
      blocks = []
      for number in range(depth):
        stride = 2 if stack > 1 and number == 0 else 1
        blocks.append(Residual(channels, planes, stride, groups))
        channels = 4 * planes if groups else planes
      setattr(self, f'layer{stack}', nn.Sequential(*blocks))
    self.fc = nn.Linear(channels, CLASSES)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    x = self.pool(torch.relu(self.bn1(self.conv1(x))))
    for stack in range(1, 5):
      x = getattr(self, f'layer{stack}')(x)
    return self.fc(x.mean((2, 3)))


def draw(network: nn.Module, random: np.random.Generator) -> None:
  """Fills a network with numbers that float16 holds exactly."""
  for name, value in network.state_dict().items():
    if name.endswith('num_batches_tracked'):
      continue
    shape = tuple(value.shape)
    if len(shape) > 1:
      drawn = random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
    elif name.endswith('running_var'):
      drawn = random.uniform(0.5, 1.5, shape)
    elif name.endswith('weight'):
      drawn = random.uniform(0.2, 0.8, shape)  # sums of blocks stay small
    else:
      drawn = random.normal(0, 0.1, shape)
    value.copy_(torch.from_numpy(drawn.astype(np.float16)))


def main() -> None:
  random = np.random.default_rng(0)
  images = random.normal(size=(2, 64, 64, 3)).astype(np.float16)
  arrays = {'images': images}
  for name, depths, groups in (
    ('resnet18', (2, 2, 2, 2), 0),
    ('resnext50', (3, 4, 6, 3), 2),
  ):
    network = Network(depths, groups).eval()
    draw(network, random)
    state = network.state_dict()
    arrays |= {
      f'{name}/{key}': value.numpy().astype(
        np.float16 if value.is_floating_point() else np.int64
      )
      for key, value in state.items()
    }
    pictures = torch.from_numpy(images.transpose(0, 3, 1, 2)).double()
    with torch.no_grad():
      logits = network.double()(pictures)
    arrays[f'{name}/logits'] = logits.numpy().astype(np.float32)
    print(name, arrays[f'{name}/logits'].std())
  path = pathlib.Path(__file__).with_name('resnet_golden.npz')
  np.savez_compressed(path, **arrays)
  print(path.name, path.stat().st_size, 'bytes')


if __name__ == '__main__':
  main()
