"""Reads .npz files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from jaxadv.data.readers.records import Fetched, Opened, Records
from jaxadv.errors import DataError, UserError
from jaxadv.inputs import to_uint8


def open_npz(path: Path) -> Opened:
  """Opens an .npz file with images and labels.

  Args:
    path: The file.

  Returns:
    The set; it has one split, 'train'.

  Raises:
    UserError: If the file is absent or its arrays are of the wrong kind.
    DataError: If it is broken or holds values that cannot be; names the row.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {key: file[key] for key in file.files}
  except FileNotFoundError as error:
    raise UserError(f'there is no file {path}') from error
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise DataError(f'cannot read {path}: {error}') from error
  missing = {'images', 'labels'} - arrays.keys()
  if missing:
    raise UserError(
      f'{path} holds {", ".join(arrays) or "nothing"} but must hold images '
      'and labels'
    )
  images, labels = _check_arrays(path, arrays['images'], arrays['labels'])
  num_classes = int(labels.max()) + 1
  given = arrays.get('class_names', np.arange(num_classes))
  if len(given) < num_classes:
    raise DataError(
      f'{path} has {len(given)} class_names but a label {num_classes - 1}'
    )

  def records(ranges):
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

  names = tuple(str(name) for name in given)
  return Opened({'train': len(labels)}, names, records)


def _check_arrays(
  path: Path, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Gives uint8[N, H, W, C] and int32[N], or says what is wrong."""
  if images.ndim == 3:
    images = images[..., None]
  if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
    raise UserError(
      f'images in {path} have the shape {images.shape} but must be [N, H, W] '
      'or [N, H, W, 1 or 3]'
    )
  if labels.shape != images.shape[:1] or labels.dtype.kind not in 'iu':
    raise UserError(
      f'labels in {path} are {labels.dtype}{list(labels.shape)} but must be '
      f'integers [{len(images)}], one a picture'
    )
  if labels.min() < 0:
    raise DataError(f'row {labels.argmin()} of {path} has a negative label')
  if images.dtype.kind == 'f':
    # Written so that NaN counts as outside.
    inside = ((images >= 0) & (images <= 1)).all(axis=(1, 2, 3))
    if not inside.all():
      raise DataError(
        f'row {inside.argmin()} of images in {path} has NaN or values '
        'outside [0, 1]'
      )
    images = to_uint8(images.astype(np.float32))
  elif images.dtype != np.uint8:
    raise UserError(
      f'images in {path} are {images.dtype} but must be uint8, or floating '
      'in [0, 1]'
    )
  return images, labels.astype(np.int32)
