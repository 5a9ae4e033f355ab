"""Reads folders of class folders of picture files."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from jaxadv.data.listing import Listing, listing, visible, warn_of_others
from jaxadv.data.readers.records import Fetched, Opened, Range, Records
from jaxadv.errors import DataError, DoubtWarning, UserError

_SPLIT = re.compile(
  r'(train|training|trainval|val|valid|validation|dev|test|testing|eval'
  r'|evaluation|holdout|held_?out|unlabell?ed)\d*',
  re.IGNORECASE,
)

# Pictures by the name of their class, by the name of their split.
_Splits = dict[str, dict[str, list[Path]]]


def open_folder(root: Path) -> Opened:
  """Opens a folder of class folders, or of splits of class folders.

  The pictures of a class are all in its folder, however deep, as
  torchvision's ImageFolder reads them; `listing.visible` says what is
  ignored. Folders with class folders in them are splits if they are called
  train, val, test or the like. Others are splits too if they stand beside
  such and share a class with them, or if two class folders or more lie in all
  of them; then a `DoubtWarning` tells.

  Args:
    root: The folder; class folders without splits are the split 'train'.

  Returns:
    The set; its classes are the names of the class folders, sorted. Every
    class has pictures, not necessarily in every split.

  Raises:
    UserError: If there are no pictures, or none in one of the folders, or
      splits have no class in common.
  """
  found = listing(root)
  splits = _find_splits(root, found)
  filled = _by_folder(found.pictures, len(root.parts))
  if splits is None:
    splits = {'train': filled}
    empty = _empty([root], filled)
  else:
    inside = {name for part in splits.values() for name in part}
    empty = _empty([root / split for split in splits], inside)
    empty |= {n for n in _empty([root], filled) if _SPLIT.fullmatch(n)}
  if empty:
    raise UserError(
      f'{_listed(empty)} in {root} should hold pictures but holds none that '
      'can be read; fill or remove it'
    )
  _check_common_classes(root, splits)
  class_names = sorted({name for part in splits.values() for name in part})
  files = {
    split: [(file, name) for name in sorted(part) for file in part[name]]
    for split, part in splits.items()
  }
  left = len(found.pictures) - sum(map(len, files.values()))
  if left:
    what = 's in {} lie in no class folder and were' if left > 1 else None
    what = (what or ' in {} lies in no class folder and was').format(root)
    warnings.warn(
      f'{left} picture{what} left out',
      DoubtWarning,
      stacklevel=2,
    )
  warn_of_others(root, found.others)
  index = {name: position for position, name in enumerate(class_names)}

  def records(ranges: Sequence[Range]) -> Records:
    chosen = [
      entry
      for split, start, stop in ranges
      for entry in files[split][start:stop]
    ]

    def fetch(rows: Sequence[int]) -> Fetched:
      entries = [chosen[row] for row in rows]
      try:
        encoded = [file.read_bytes() for file, _ in entries]
      except OSError as error:
        raise DataError(f'cannot read a picture: {error}') from error
      return Fetched(
        encoded,
        [index[name] for _, name in entries],
        [file.name for file, _ in entries],
      )

    return Records(len(chosen), fetch, lambda row: str(chosen[row][0]))

  sizes = {split: len(entries) for split, entries in files.items()}
  return Opened(sizes, tuple(class_names), records)


def _by_folder(files: Iterable[Path], depth: int) -> dict[str, list[Path]]:
  """Groups files by the name of the folder at a depth; drops higher ones."""
  groups = defaultdict(list)
  for file in files:
    if len(file.parts) > depth + 1:
      groups[file.parts[depth]].append(file)
  return dict(groups)


def _find_splits(root: Path, found: Listing) -> _Splits | None:
  """Finds out which folders are splits.

  Returns:
    Those that hold class folders; None if the folders are classes.

  Raises:
    UserError: If folders called as splits hold no class folders, or stand
      beside what is no split.
  """
  depth = len(root.parts)
  parts = _by_folder(found.pictures, depth)
  if not parts:
    raise UserError(
      f'{root} holds no pictures in folders; expected a folder for each class '
      'with .png, .jpg, .webp or other files of a format that Pillow reads'
    )
  named = {name for name in parts if _SPLIT.fullmatch(name)}
  splits = {}
  for name, files in parts.items():
    classes = _by_folder(files, depth + 1)
    # Stray pictures beside class folders make no class of a split.
    whole = sum(map(len, classes.values())) == len(files)
    if classes and (whole or name in named):
      splits[name] = classes
  if not splits:
    if named == parts.keys():
      raise UserError(
        f'{_listed(named)} in {root} hold pictures but no class folders; put '
        'the pictures into a folder for each class'
      )
    return None
  others = splits.keys() - named
  called = splits.keys() & named
  if not called:
    common = set.intersection(*map(set, splits.values()))
    if splits.keys() != parts.keys() or len(common) < 2:
      held = [name for inner in splits.values() for name in inner]
      # One folder of the same name in every class would make a single class.
      if len(held) > len(set(held)) > 1:
        _warn_of_reading(root, splits, 'classes rather than for splits')
      return None
  else:
    theirs = {label for name in called for label in splits[name]}
    strangers = {name for name in others if not theirs & splits[name].keys()}
    strangers |= parts.keys() - splits.keys() - named
    if strangers:
      raise UserError(
        f'{root} holds {_listed(called)}, called as splits are, '
        f'beside {_listed(strangers)}, with none of the same class folders; '
        'move the latter away, or rename the former if these are classes'
      )
  if others:
    _warn_of_reading(root, splits, 'splits rather than for classes')
  return splits


def _warn_of_reading(root: Path, names: Iterable[str], reading: str) -> None:
  """Says aloud how folders are read that may be splits as well as classes."""
  warnings.warn(
    f'{_listed(names)} in {root} are taken for {reading}; they hold folders of '
    'the same names and may be either: call splits train and test',
    DoubtWarning,
    stacklevel=4,
  )


def _empty(roots: Iterable[Path], filled: Collection[str]) -> set[str]:
  """Names the folders in `roots` that are not among those with pictures."""
  return {
    folder.name for root in roots for folder in visible(root)[0]
  }.difference(filled)


def _check_common_classes(root: Path, splits: _Splits) -> None:
  """Refuses splits that have nothing to do with each other.

  Raises:
    UserError: If a split shares no class with the largest one.
  """
  largest = max(splits, key=lambda split: len(splits[split]))
  for split, classes in splits.items():
    if not classes.keys() & splits[largest].keys():
      raise UserError(
        f'the splits {split} and {largest} of {root} share no class; expected '
        f'class folders such as {_listed(splits[largest])} in both'
      )
  train = next((s for s in splits if s.lower().startswith('train')), None)
  if train:
    others = {name for classes in splits.values() for name in classes}
    unseen = others - splits[train].keys()
    if unseen:
      warnings.warn(
        f'the split {train} of {root} has no pictures of {_listed(unseen)}, '
        'which another split has',
        DoubtWarning,
        stacklevel=3,
      )


def _listed(names: Iterable[str], most: int = 5) -> str:
  """Lists names, not too many."""
  ordered = sorted(names)
  more = f' and {len(ordered) - most} more' if len(ordered) > most else ''
  return ', '.join(ordered[:most]) + more
