"""Pictures made from a seed, for tests."""

from __future__ import annotations

import numpy as np

from jaxadv.data.sources import Pictures, pictures_from_arrays


def generated_pictures(
  n: int,
  size: int = 32,
  num_classes: int = 10,
  seed: int = 0,
  channels: int = 3,
) -> Pictures:
  """Draws pictures whose class a small network can learn.

  Every class has a smooth colour pattern of its own; a picture is its pattern
  with another contrast and with noise. The patterns depend on the seed too.

  Args:
    n: Number of pictures; classes take turns.
    size: Height and width.
    num_classes: Number of classes.
    seed: Seed of everything.
    channels: 1 or 3.

  Returns:
    `Pictures`, uint8[n, size, size, channels].
  """
  rng = np.random.default_rng(seed)
  axis = np.arange(size) / size
  down, right = np.meshgrid(axis, axis, indexing='ij')
  frequency = rng.uniform(-2, 2, (2, num_classes, 1, 1, channels))
  phase = rng.uniform(0, 1, (num_classes, 1, 1, channels))
  turns = frequency[0] * down[..., None] + frequency[1] * right[..., None]
  patterns = np.cos(2 * np.pi * (turns + phase))
  labels = np.arange(n) % num_classes
  contrast = rng.uniform(0.2, 0.4, (n, 1, 1, 1))
  noise = rng.normal(0, 0.05, (n, size, size, channels))
  values = 0.5 + contrast * patterns[labels] + noise
  return pictures_from_arrays(
    np.round(np.clip(values, 0, 1) * 255).astype(np.uint8),
    labels,
    class_names=tuple(str(label) for label in range(num_classes)),
    name='generated',
  )
