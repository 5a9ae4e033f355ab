"""Sets that live on the device as 8-bit pictures, and ways to split them.

A stored set is a `Batch` whose images are uint8; `take` indexes it inside
`jit` and scales what it took to float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.errors import UserError
from jaxadv.inputs import as_labels, as_uint8, check_shape
from jaxadv.types import Batch
from jaxadv.units import to_float


class Labelled(Protocol):
  """Anything with pictures, labels and source ids: a set of any kind."""

  @property
  def images(self) -> np.ndarray:
    """uint8[N, H, W, C]."""

  @property
  def labels(self) -> np.ndarray:
    """int32[N]."""

  @property
  def source(self) -> np.ndarray:
    """int32[N]."""


def check_fields(pictures: Any, names: Iterable[str]) -> None:
  """Checks that what was given as a set of pictures is one.

  Args:
    pictures: Anything.
    names: The attributes that it must have.

  Raises:
    UserError: If some are missing, as an array has none of them.
  """
  missing = [name for name in names if not hasattr(pictures, name)]
  if missing:
    raise UserError(
      f'the pictures are a {type(pictures).__name__} without '
      f'{", ".join(missing)}; make them with data.sources.pictures_from_arrays'
    )


def stored(pictures: Labelled, kind: int = 0) -> Batch:
  """Puts pictures into the form in which sets are stored.

  Args:
    pictures: `Pictures` or an `AdversarialSet`; images that are floating in
      [0, 1] are rounded to 8 bit.
    kind: 0 for clean pictures, else the index of the kind plus one.

  Returns:
    A `Batch` of NumPy arrays with uint8 images; its mask is all True.

  Raises:
    UserError: If images, labels or source ids have another dtype, shape or
      range.
    DataError: If a picture holds NaN.
  """
  check_fields(pictures, ('images', 'labels', 'source'))
  images = as_uint8(pictures.images)
  check_shape(images)
  n = len(images)
  columns: list[Any] = [
    images,
    as_labels(np.asarray(pictures.labels), n),
    np.full(n, kind, np.int32),
    as_labels(np.asarray(pictures.source), n, 'source ids'),
    np.ones(n, bool),
  ]
  return Batch(*columns)


def concatenate(sets: Sequence[Batch]) -> Batch:
  """Joins stored sets of one picture size, on the host.

  Raises:
    UserError: If the pictures differ in size.
  """
  shapes = {batch.images.shape[1:] for batch in sets}
  if len(shapes) > 1:
    raise UserError(
      f'pictures of {" and ".join(map(str, sorted(shapes)))} (height, width, '
      'channels) do not go together; give all the same size'
    )
  columns: list[Any] = [np.concatenate(c) for c in zip(*sets, strict=True)]
  return Batch(*columns)


def select(batch: Batch, rows: np.ndarray) -> Batch:
  """Takes rows of a stored set, on the host.

  Args:
    batch: A stored set of NumPy arrays.
    rows: Indices or bool[N].

  Returns:
    The rows, still uint8.
  """
  return Batch(*(column[rows] for column in batch))


def epoch_order(
  key: jax.Array | None, n: int, batch_size: int
) -> tuple[jax.Array, jax.Array]:
  """Orders the rows of a set for one epoch, in batches of one size.

  Args:
    key: Key of the shuffle; None keeps the order.
    n: Number of rows, at least 1.
    batch_size: Rows in a batch, at least 1.

  Returns:
    Rows, int32[steps, batch_size], every one once; and bool[steps,
    batch_size], False where the last batch is padded (with row 0).
  """
  order = jnp.arange(n, dtype=jnp.int32)
  if key is not None:
    order = jax.random.permutation(key, order)
  steps = -(-n // batch_size)
  padding = (0, steps * batch_size - n)
  shape = (steps, batch_size)
  return (
    jnp.pad(order, padding).reshape(shape),
    jnp.pad(jnp.ones(n, bool), padding).reshape(shape),
  )


def take(batch: Batch, rows: jax.Array, mask: jax.Array | bool = True) -> Batch:
  """Takes rows of a stored set and scales them; made to be jitted.

  Args:
    batch: A stored set, uint8.
    rows: int32[B].
    mask: bool[B], False in rows that are padding.

  Returns:
    A `Batch` with float32 images in [0, 1].
  """
  images, labels, kind, source, stored_mask = (
    jnp.asarray(column)[rows] for column in batch
  )
  return Batch(
    images=to_float(images),
    labels=labels,
    kind=kind,
    source=source,
    mask=stored_mask & mask,
  )


_take = jax.jit(take)


@dataclasses.dataclass(frozen=True)
class Batches:
  """A stored set, read in order, as often as one likes; see `batches`.

  Attributes:
    batch: The stored set, uint8.
    batch_size: Rows of every batch, the last one included.
  """

  batch: Batch
  batch_size: int
  checked = True  # So that nobody fetches its pictures to look at them.

  def __len__(self) -> int:
    """Counts the batches."""
    return -(-len(self.batch.labels) // self.batch_size)

  def __iter__(self) -> Iterator[Batch]:
    """Gives float32 batches; the last one is padded and masked."""
    rows, mask = epoch_order(None, len(self.batch.labels), self.batch_size)
    for step in range(len(self)):
      yield _take(self.batch, rows[step], mask[step])


def batches(pictures: Labelled | Batch, batch_size: int) -> Batches:
  """Makes the re-readable batches that detectors fit on.

  Args:
    pictures: A stored set (host or device), `Pictures` or `AdversarialSet`.
    batch_size: Rows of every batch.

  Returns:
    An iterable of `Batch`; all batches have one shape.

  Raises:
    UserError: If the set is empty or `batch_size` below 1.
  """
  batch = pictures if isinstance(pictures, Batch) else stored(pictures)
  if batch_size < 1:
    raise UserError(f'batch_size is {batch_size} but must be at least 1')
  if not len(batch.labels):
    raise UserError('the set holds no pictures; batches need at least one')
  return Batches(jax.device_put(batch), batch_size)


def split_by_source(
  seed: int, source: np.ndarray, fractions: Sequence[float]
) -> tuple[np.ndarray, ...]:
  """Splits rows so that all versions of a picture fall on the same side.

  One permutation of the source ids decides for every row, so give the ids of
  all kinds at once. Sets that share no source may be split by calls of their
  own, which keeps the sides of each in proportion.

  Args:
    seed: Seed of the permutation.
    source: int[N], source ids, in any order and number.
    fractions: Shares of the source ids, adding up to at most 1.

  Returns:
    One bool[N] a fraction; no row is in two of them.

  Raises:
    UserError: If a fraction is negative or they add up to more than 1.
  """
  ids, position = np.unique(source, return_inverse=True)
  return _sides(seed, len(ids), fractions, position)


def split_per_class(
  seed: int, kind: np.ndarray, fractions: Sequence[float]
) -> tuple[np.ndarray, ...]:
  """Splits every kind on its own, as Agarwal et al. (2022), section 4, do.

  Versions of one picture can then lie on both sides; the difference to
  `split_by_source` measures that leak.

  Args:
    seed: Seed of the permutations.
    kind: int[N].
    fractions: Shares of each kind, adding up to at most 1.

  Returns:
    One bool[N] a fraction; no row is in two of them.

  Raises:
    UserError: If a fraction is negative or they add up to more than 1.
  """
  masks = np.zeros((len(fractions), len(kind)), bool)
  for value in np.unique(kind):
    rows = np.flatnonzero(kind == value)
    sides = _sides(
      [seed, int(value)], len(rows), fractions, np.arange(len(rows))
    )
    masks[:, rows] = sides
  return tuple(masks)


def _sides(
  seed: int | list[int],
  n: int,
  fractions: Sequence[float],
  position: np.ndarray,
) -> tuple[np.ndarray, ...]:
  """Deals n things out by shares; gives where each position went."""
  if min(fractions) < 0 or sum(fractions) > 1 + 1e-6:
    raise UserError(
      f'fractions are {tuple(fractions)} but must not be negative nor add up '
      'to more than 1'
    )
  ends = np.round(np.cumsum(fractions) * n).astype(int)
  starts = np.concatenate([[0], ends[:-1]])
  place = np.random.default_rng(seed).permutation(n)[position]
  return tuple(
    (place >= start) & (place < end)
    for start, end in zip(starts, ends, strict=True)
  )
