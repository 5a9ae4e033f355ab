"""Reads .npz files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxadv import inputs
from jaxadv.data.readers.records import Fetched, Opened, Range, Records
from jaxadv.errors import DataError, UserError
from jaxadv.storage import read_npz

# What others call images and labels, in lower case; the first that is there.
_IMAGES = ('images', 'x', 'x_train', 'x_test', 'train_images', 'data', 'arr_0')
_LABELS = ('labels', 'y', 'y_train', 'y_test', 'train_labels', 'arr_1')


def open_npz(path: Path) -> Opened:
  """Opens an .npz file with images and labels.

  Args:
    path: The file. Without `class_names` in it every class from 0 to the
      largest label has pictures.

  Returns:
    The set; it has one split, 'train'.

  Raises:
    UserError: If the file is absent or its arrays are of the wrong kind.
    DataError: If it is broken or a picture holds NaN; names the row.
  """
  if not path.is_file():
    raise UserError(f'there is no file {path}')
  arrays = read_npz(path)
  missing = {'images', 'labels'} - arrays.keys()
  if missing:
    raise UserError(
      f'{path} holds {", ".join(arrays) or "nothing"} but must hold images '
      f'and labels{_renaming(arrays)}'
    )
  try:
    images = _check_images(arrays['images'])
    labels, names = _check_labels(
      arrays['labels'], len(images), arrays.get('class_names')
    )
  except (UserError, DataError) as error:
    raise type(error)(f'{path}: {error}') from error

  def records(ranges: Sequence[Range]) -> Records:
    chosen = np.concatenate(
      [np.arange(start, stop) for _, start, stop in ranges]
    )
    return Records(
      len(chosen),
      lambda rows: Fetched(
        list(images[chosen[rows]]), labels[chosen[rows]].tolist()
      ),
      lambda row: f'row {chosen[row]} of {path}',
    )

  return Opened({'train': len(labels)}, names, records)


def _renaming(arrays: Mapping[str, np.ndarray]) -> str:
  """Says how to rename arrays that go by a usual name; '' if none does."""
  given = [
    next((n for usual in names for n in arrays if n.lower() == usual), None)
    for names in (_IMAGES, _LABELS)
  ]
  if given == [None, None]:
    return ''
  images, labels = (
    f'f[{name!r}]' if name else missing
    for name, missing in zip(given, ('IMAGES', 'LABELS'), strict=True)
  )
  return (
    '; rename them with f = numpy.load(FILE) and '
    f'numpy.savez(OTHER, images={images}, labels={labels})'
  )


def _check_images(images: np.ndarray) -> np.ndarray:
  """Gives uint8[N, H, W, 1 or 3], or says what is wrong."""
  if images.ndim == 3:
    images = images[..., None]
  if images.ndim == 4:
    inputs.check_shape(images)
  if images.ndim != 4 or images.shape[-1] not in (1, 3):
    raise UserError(
      f'images have the shape {images.shape} but must be [N, H, W] or '
      '[N, H, W, 1 or 3]'
    )
  return inputs.as_uint8(images)


def _check_labels(
  labels: np.ndarray, num: int, given: np.ndarray | None
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Gives int32[num] and the class names, or says what is wrong."""
  if given is not None:
    if given.ndim != 1 or given.dtype.kind not in 'USiu':
      raise UserError(
        f'class_names are {given.dtype}{list(given.shape)} but must be a list '
        'of names, one a class'
      )
    encoded = given.dtype.kind == 'S'
    names = (
      np.char.decode(given, 'utf-8', 'replace') if encoded else given
    ).tolist()
    if len(set(names)) < len(names):
      raise UserError('class_names hold a name twice; give each class its own')
    labels = inputs.as_labels(labels, num, num_classes=len(names))
    return labels, tuple(map(str, names))
  labels = inputs.as_labels(labels, num)
  last = int(labels.max())
  labels = inputs.as_labels(labels, num, num_classes=last + 1)
  present = np.unique(labels).tolist()
  if len(present) <= last:
    shifted = present == list(range(present[0], last + 1))
    raise UserError(
      f'labels take {len(present)} values from {present[0]} to {last} but must '
      'take all from 0 on; '
      + (f'subtract {present[0]}' if shifted else 'number them without gaps')
      + f', or give class_names of all classes from 0 to {last}'
    )
  return labels, tuple(map(str, present))
