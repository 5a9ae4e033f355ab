"""The one conversion between 8-bit pictures and those in [0, 1].

Two conversions would round differently, and a picture would differ from itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# A product rather than a quotient: XLA may turn a division by a constant into
# a product of another rounding, and host and device must agree bit for bit.
_SCALE = np.float32(1 / 255)


def to_uint8(images: Any) -> Any:
  """Rounds to 8 bit: clip to [0, 1], times 255, half to even.

  Args:
    images: float32 in [0, 1], NumPy or JAX (then also inside `jit`).

  Returns:
    uint8 of the same shape and kind.
  """
  return (images.clip(0, 1) * np.float32(255)).round().astype(np.uint8)


def to_float(images: Any) -> Any:
  """Scales 8-bit pictures to [0, 1]; `to_uint8` undoes it exactly.

  Args:
    images: uint8, NumPy or JAX (then also inside `jit`).

  Returns:
    float32 of the same shape and kind; 255 becomes exactly 1.
  """
  return images.astype(np.float32) * _SCALE


def in_image_units(images: ArrayLike) -> np.ndarray:
  """Gives pictures as float64 in [0, 1], by way of float32 as attacks do.

  Args:
    images: uint8, or floating in [0, 1].
  """
  array = np.asarray(images)
  array = to_float(array) if array.dtype == np.uint8 else array
  return array.astype(np.float32).astype(np.float64)
