"""What the frozen part of a backbone gives for the pictures of a run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.classifier import Classifier
from jaxadv.detectors.backbone import Design, prefix_features
from jaxadv.errors import explain_out_of_memory
from jaxadv.units import to_float


class Features(NamedTuple):
  """Features of a pool of pictures: all sets of a run, one after the other.

  Attributes:
    whole: [P, h, w, c] on the device, or None if that is above the limit.
    take: `rows -> [len(rows), h, w, c]` on the device, of rows of the pool;
      without `whole` they are computed each time: a single forward pass, and
      no copy of them on the host or on disk.
  """

  whole: jax.Array | None
  take: Callable[[np.ndarray], jax.Array]


def num_bytes(
  design: Design, classifier: Classifier, image_size: int, dtype: str
) -> int:
  """Gives the bytes that the features of one picture take.

  Args:
    design: The design of the detectors.
    classifier: The backbone; its variables may be shapes only.
    image_size: Side of the pictures, in pixels.
    dtype: Of the features.
  """
  images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.uint8)
  shape = jax.eval_shape(
    functools.partial(_prefix, design=design, dtype=dtype), classifier, images
  )
  return math.prod(shape.shape) * shape.dtype.itemsize


def pool(
  design: Design,
  classifier: Classifier,
  images: Sequence[np.ndarray],
  *,
  dtype: str,
  limit: float,
  batch_size: int,
) -> Features:
  """Gives the features of a pool of pictures.

  Args:
    design: The design of the detectors.
    classifier: The backbone with its weights.
    images: uint8[n, H, W, 3] of each set, all of one size.
    dtype: 'float32' or 'bfloat16', in which they are kept.
    limit: Bytes that all of them may take on the device.
    batch_size: Pictures at a time.

  Returns:
    The features; row s * n + i is picture i of set s.

  Raises:
    DataError: If memory does not suffice.
  """
  n = len(images[0])
  num_rows = n * len(images)
  size = min(batch_size, num_rows)

  def compute_step(rows: np.ndarray) -> jax.Array:
    pictures = np.stack([images[row // n][row % n] for row in rows])
    padding = [(0, size - len(rows))] + [(0, 0)] * 3
    return _prefix(
      classifier, np.pad(pictures, padding), design=design, dtype=dtype
    )

  def compute(rows: np.ndarray) -> jax.Array:
    with explain_out_of_memory(size):
      first = compute_step(rows[:size])
      if len(rows) <= size:
        return first[: len(rows)].block_until_ready()
      found = jnp.empty((len(rows), *first.shape[1:]), dtype)
      found = _put(found, first, 0)
      # The last step goes back over rows already done, not beyond the end.
      for start in [*range(size, len(rows) - size, size), len(rows) - size]:
        part = compute_step(rows[start : start + size])
        # Waits, lest pictures of many steps queue on the device.
        found = _put(found, part, start).block_until_ready()
    return found

  each = num_bytes(design, classifier, images[0].shape[1], dtype)
  if num_rows * each > limit:
    return Features(None, compute)
  whole = compute(np.arange(num_rows))
  return Features(whole, lambda rows: whole[np.asarray(rows)])


@functools.partial(jax.jit, static_argnames=('design', 'dtype'))
def _prefix(classifier, images, *, design, dtype):
  # At the top, so that all seeds of a backbone share one compilation.
  features = prefix_features(design, classifier, to_float(images))
  return features.astype(dtype)


@functools.partial(jax.jit, donate_argnames='found')
def _put(found, part, start):
  return jax.lax.dynamic_update_slice_in_dim(found, part, start, axis=0)
