"""What every reader gives: stored pictures that are fetched by row."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from jaxadv.data import images as image_tools
from jaxadv.errors import DataError, UserError

_CHUNK = 500
# Below this many bytes a picture decodes faster than threads can take turns.
_WORTH_THREADS = 10_000

Range = tuple[str, int, int]


class Fetched(NamedTuple):
  """Some stored pictures, not decoded yet.

  Attributes:
    pictures: Encoded files (`images.decode`), or uint8[H, W, C].
    labels: One a picture; negative where the set keeps it secret.
    file_names: One a picture, or None if the set has none.
  """

  pictures: Sequence[bytes | np.ndarray]
  labels: list[int]
  file_names: list[str] | None = None


class Records(NamedTuple):
  """The stored pictures of a split.

  Attributes:
    n: Number of pictures.
    fetch: `rows -> Fetched`, reads these rows and no others.
    where: `row -> str`, names the file and record in errors.
  """

  n: int
  fetch: Callable[[Sequence[int]], Fetched]
  where: Callable[[int], str]


class Opened(NamedTuple):
  """A set whose splits can be read.

  Attributes:
    sizes: Number of pictures by split.
    class_names: One a class.
    records: `ranges -> Records`, the union of ranges (split, start, stop).
  """

  sizes: Mapping[str, int]
  class_names: tuple[str, ...]
  records: Callable[[Sequence[Range]], Records]


def choose(
  records: Records,
  rows: np.ndarray,
  classes: Collection[int] | None,
  limit: int | None,
) -> np.ndarray:
  """Keeps the first rows whose label is wanted, without decoding a picture.

  Args:
    records: A split.
    rows: int[N], in the order of preference.
    classes: Wanted labels; None wants all.
    limit: How many rows to keep at most; no more are read than it takes.

  Returns:
    int[M], in the same order.
  """
  if classes is None:
    return rows[:limit]
  kept: list[int] = []
  for start in range(0, len(rows), _CHUNK):
    if limit is not None and len(kept) >= limit:
      break
    part = rows[start : start + _CHUNK].tolist()
    labels = records.fetch(part).labels
    kept += [row for row, k in zip(part, labels, strict=True) if k in classes]
  return np.array(kept[:limit], int)


def decode(
  records: Records,
  row: int,
  picture: bytes | np.ndarray,
  channels: int,
  image_size: int | None,
) -> np.ndarray:
  """Decodes one picture of a split by the path that all pictures take.

  Args:
    records: The split; names the picture in errors.
    row: Its row.
    picture: What was fetched.
    channels: 1 or 3.
    image_size: Height and width to give it; None keeps them.

  Returns:
    uint8[H, W, channels].

  Raises:
    DataError: If the picture is broken or deeper than 8 bits; names file and
      record.
  """
  if isinstance(picture, np.ndarray):
    pixels = image_tools.with_channels(picture[None], channels)
    return (
      pixels if image_size is None else image_tools.resize(pixels, image_size)
    )[0]
  try:
    return image_tools.decode(picture, channels, image_size)
  except ValueError as error:
    raise DataError(f'cannot read {records.where(row)}: {error}') from error


def check_labels(
  records: Records, rows: Sequence[int], labels: Sequence[int]
) -> None:
  """Refuses pictures whose label the set keeps secret.

  Raises:
    DataError: If a label is negative; names the record.
  """
  for row, label in zip(rows, labels, strict=True):
    if label < 0:
      raise DataError(f'{records.where(row)} has no label; choose other splits')


def decode_all(
  records: Records,
  rows: np.ndarray,
  channels: int,
  image_size: int | None,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...] | None]:
  """Decodes rows of a split into one array.

  Returns:
    uint8[N, H, W, C], int32[N] and the file names, if the set has them.

  Raises:
    UserError: If the pictures differ in size and none is given.
    DataError: If one is broken or has no label; names it.
  """
  n = len(rows)
  images, labels = np.empty(0, np.uint8), np.empty(n, np.int32)
  names: list[str] = []
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for start in range(0, n, _CHUNK):
      part = rows[start : start + _CHUNK].tolist()
      fetched = records.fetch(part)
      check_labels(records, part, fetched.labels)
      labels[start : start + _CHUNK] = fetched.labels
      names += fetched.file_names or ()

      def decode_one(row: int, picture: bytes | np.ndarray) -> np.ndarray:
        return decode(records, row, picture, channels, image_size)

      threaded = len(fetched.pictures[0]) >= _WORTH_THREADS
      mapped = (pool.map if threaded else map)(
        decode_one, part, fetched.pictures
      )
      for index, pixels in enumerate(mapped, start):
        if index == 0:
          images = np.empty((n, *pixels.shape), np.uint8)
        elif pixels.shape != images.shape[1:]:
          raise UserError(
            f'pictures differ in size: {pixels.shape[:2]} in '
            f'{records.where(rows[index])} but {images.shape[1:3]} in '
            f'{records.where(rows[0])}; pass an image size'
          )
        images[index] = pixels
  return images, labels, tuple(names) or None
