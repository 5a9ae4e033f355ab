"""Reads folders of class folders of PNG or JPEG files."""

from __future__ import annotations

from pathlib import Path

from jaxadv.data.readers.records import Fetched, Opened, Records
from jaxadv.errors import DataError, UserError

_SUFFIXES = ('.png', '.jpg', '.jpeg')


def holds_pictures(root: Path) -> bool:
  """Tells whether `open_folder` finds pictures in a folder."""
  return root.is_dir() and any(
    _is_picture(file)
    for part in (root, *_folders(root))
    for folder in _folders(part)
    for file in folder.iterdir()
  )


def open_folder(root: Path) -> Opened:
  """Opens a folder of class folders, or of splits of class folders.

  Args:
    root: The folder; class folders without splits are the split 'train'.

  Returns:
    The set; its classes are the names of the class folders, sorted.

  Raises:
    UserError: If there are no pictures.
  """
  folders = _folders(root)
  if any(_files(folder) for folder in folders):
    roots = {'train': root}
  else:
    roots = {folder.name: folder for folder in folders if _folders(folder)}
  class_names = tuple(
    sorted({f.name for part in roots.values() for f in _folders(part)})
  )
  index = {name: position for position, name in enumerate(class_names)}
  files = {
    split: [
      (file, index[folder.name])
      for folder in _folders(part)
      for file in _files(folder)
    ]
    for split, part in roots.items()
  }
  if not any(files.values()):
    raise UserError(
      f'{root} holds no pictures; expected a folder for each class with '
      f'{", ".join(_SUFFIXES)} files in it'
    )

  def records(ranges):
    chosen = [
      entry
      for split, start, stop in ranges
      for entry in files[split][start:stop]
    ]

    def fetch(rows):
      entries = [chosen[row] for row in rows]
      try:
        encoded = [file.read_bytes() for file, _ in entries]
      except OSError as error:
        raise DataError(f'cannot read a picture: {error}') from error
      return Fetched(
        encoded, [k for _, k in entries], [file.name for file, _ in entries]
      )

    return Records(len(chosen), fetch, lambda row: str(chosen[row][0]))

  sizes = {split: len(entries) for split, entries in files.items()}
  return Opened(sizes, class_names, records)


def _folders(folder: Path) -> list[Path]:
  """Lists the folders in a folder, without hidden ones."""
  return sorted(
    path
    for path in folder.iterdir()
    if path.is_dir() and not path.name.startswith('.')
  )


def _files(folder: Path) -> list[Path]:
  """Lists the pictures in a folder."""
  return sorted(path for path in folder.iterdir() if _is_picture(path))


def _is_picture(path: Path) -> bool:
  """Tells pictures by their suffix; hidden files are none."""
  return path.suffix.lower() in _SUFFIXES and not path.name.startswith('.')
