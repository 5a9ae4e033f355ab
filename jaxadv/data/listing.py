"""Lists the pictures in folders, and says aloud what it leaves out."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxadv.data.images import suffixes
from jaxadv.errors import DoubtWarning

# What systems put beside the files of a user, previews among it, in lower
# case; names that begin with a dot are hidden anyway.
_SYSTEM = {
  *('@eadir', '@recycle', '@recently-snapshot', '#recycle', '#snapshot'),
  *('$recycle.bin', 'recycler', 'system volume information', 'desktop.ini'),
  *('thumbs.db', 'ehthumbs.db', '__macosx', 'lost+found', '__pycache__'),
}


class Listing(NamedTuple):
  """The files in a folder and in all folders below it.

  Attributes:
    pictures: Files whose suffix is one of `images.suffixes`, sorted.
    others: The other ones.
  """

  pictures: list[Path]
  others: list[Path]


def visible(folder: Path) -> tuple[list[Path], list[Path]]:
  """Lists what is in a folder, without what is hidden or the system's.

  Args:
    folder: Any.

  Returns:
    The folders and the files in it, both sorted. What begins with a dot is
    not among them, nor are the likes of `@eaDir`, `__MACOSX`, `Thumbs.db`.
  """
  folders: list[Path] = []
  files: list[Path] = []
  with os.scandir(folder) as entries:
    for entry in entries:
      name = entry.name.lower()
      if not name.startswith('.') and name not in _SYSTEM:
        (folders if entry.is_dir() else files).append(Path(entry.path))
  return sorted(folders), sorted(files)


def listing(folder: Path) -> Listing:
  """Lists the files in a folder, however deep they lie.

  Args:
    folder: Any. Links in it are followed, but never back to a folder above;
      see `visible` for what is ignored.

  Returns:
    The pictures and the other files.
  """
  found = Listing([], [])
  for file in sorted(_files(folder)):
    (found.pictures if _is_picture(file) else found.others).append(file)
  return found


def holds_pictures(folder: Path) -> bool:
  """Tells whether `listing` finds a picture in a folder."""
  return folder.is_dir() and any(map(_is_picture, _files(folder)))


def warn_of_others(root: Path, others: Sequence[Path]) -> None:
  """Counts aloud the files that are no pictures.

  Args:
    root: The folder that was listed.
    others: The files in it.
  """
  if others:
    kinds = Counter(file.suffix.lower() or 'no suffix' for file in others)
    counts = ', '.join(f'{kind} {n}' for kind, n in kinds.most_common())
    what = 's in {} are no pictures and were' if len(others) > 1 else None
    what = (what or ' in {} is no picture and was').format(root)
    warnings.warn(
      f'{len(others)} file{what} left out ({counts})',
      DoubtWarning,
      stacklevel=3,
    )


def _is_picture(file: Path) -> bool:
  """Tells pictures by their suffix."""
  return file.suffix.lower() in suffixes()


def _files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
  """Yields the files below a folder."""
  here = folder.resolve()
  if here in above:
    return
  folders, files = visible(folder)
  yield from files
  for inner in folders:
    yield from _files(inner, (*above, here))
