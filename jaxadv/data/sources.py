"""Reads labelled pictures: prepared TFDS sets, the digits, a user's own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import reprlib
import warnings
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxadv.data.listing import holds_pictures
from jaxadv.data.readers.arrays import open_npz
from jaxadv.data.readers.folders import open_folder
from jaxadv.data.readers.prepared import latest_version, open_tfds, quiet_tfds
from jaxadv.data.readers.records import (
  Opened,
  Range,
  Records,
  choose,
  decode_all,
)
from jaxadv.errors import DataError, DoubtWarning, UserError, near_names
from jaxadv.storage import Cache, code_version

# Of a set with a single split, what is learnt from.
TRAIN_SHARE = 0.25


class Pictures(NamedTuple):
  """Clean pictures with their labels, on the host.

  Attributes:
    images: uint8[N, H, W, C].
    labels: int32[N].
    source: int32[N], index of the picture in the split as it was read.
    class_names: One a class.
    name: Name of the set.
    fingerprint: SHA-256 of pictures, labels and class names.
    file_names: One a picture, without folders; None if the set has none.
  """

  images: np.ndarray
  labels: np.ndarray
  source: np.ndarray
  class_names: tuple[str, ...]
  name: str
  fingerprint: str
  file_names: tuple[str, ...] | None = None


def load(
  name: str | os.PathLike[str],
  split: str = 'all',
  *,
  data_dir: str | os.PathLike[str] | None = None,
  cache_dir: str | os.PathLike[str] | None = None,
  image_size: int | None = None,
  channels: int = 3,
  limit: int | None = None,
  rows: Iterable[int] | None = None,
  seed: int | None = None,
  classes: Collection[int] | None = None,
) -> Pictures:
  """Loads a split of a set into memory; downloads nothing.

  Only the pictures that are asked for are decoded, and hardly more are read:
  `load('imagenet2012', 'validation', limit=3000, seed=0)` draws 3,000 at
  random and reads those.

  Args:
    name: One of
      'digits', which comes with scikit-learn and is prepared on first use
      (1,797 pictures, 32x32);
      a TFDS set that lies in `data_dir` in array_record form, as 'cifar10',
      'cifar10:3.0.2' or 'name/config';
      a folder of class folders that lies in `data_dir`, by its name;
      the path of one TFDS set (the folder of its dataset_info.json);
      the path of a folder of class folders of pictures, or of a folder of
      such folders, one a split (`readers.folders.open_folder` tells which is
      which), of any format of `images.suffixes`; pictures are turned upright
      by their EXIF data;
      the path of an .npz with `images` (uint8, or floating in [0, 1],
      [N, H, W] or [N, H, W, C]), `labels` (integers [N], each from 0 on
      present) and perhaps `class_names`, of which some may be absent.
      A path may be a `pathlib.Path`.
    split: A split in the language of TFDS: 'test', 'train[:5000]',
      'train[80%:]', 'train+test'. 'all' is the union of the splits; own
      pictures without split folders have one split, 'train'.
    data_dir: Folder of prepared sets; default the environment variable
      JAXADV_DATA_DIR.
    cache_dir: Where 'digits' is prepared; default `jaxadv` in the user's
      cache folder.
    image_size: Height and width to give all pictures (`images.resize`); None
      keeps the stored size, which must then be one.
    channels: 3 (grey pictures are repeated) or 1.
    limit: Read at most so many pictures, the first ones.
    rows: Indices in the split, in the order in which to give the pictures;
      None gives all.
    seed: Takes the pictures in a random order instead.
    classes: Keep only pictures with these labels; labels stay as they are.

  Returns:
    `Pictures`, in the order of the split if neither `rows` nor `seed` is
    given. `source` is the index in the split.

  Raises:
    UserError: If the set, split, size, rows or classes cannot be had; says
      what can.
    DataError: If a stored picture is broken, or has more than 8 bits a
      channel; names file and record.

  Warns:
    DoubtWarning: If files of a folder are no pictures or lie in no class
      folder, if it is not sure that folders are splits, or if the training
      split lacks a class.
  """
  if channels not in (1, 3):
    raise UserError(f'channels is {channels} but must be 1 or 3')
  for argument, value in (('image_size', image_size), ('limit', limit)):
    if value is not None and not isinstance(value, Integral):
      raise UserError(
        f'{argument} is {value!r} but must be a whole number'
        + '; pictures become square' * (argument == 'image_size')
      )
    if value is not None and value < 1:
      raise UserError(f'{argument} is {value} but must be at least 1')
  if classes is not None:
    what = 'positions in class_names'
    classes = _whole_numbers('classes', classes, what).tolist()
  opened, records = _records(name, split, data_dir, cache_dir)
  chosen = choose(records, _order(records.n, rows, seed), classes, limit)
  if not len(chosen):
    raise UserError(
      f'no picture of {split} of {name} is asked for or has one of the '
      f'{len(classes or opened.class_names)} classes'
    )
  images, labels, names = decode_all(records, chosen, channels, image_size)
  return pictures_from_arrays(
    images,
    labels,
    class_names=opened.class_names,
    name=Path(name).name,
    source=chosen,
    file_names=names,
  )


def open_records(
  name: str | os.PathLike[str],
  split: str = 'all',
  *,
  data_dir: str | os.PathLike[str] | None = None,
  cache_dir: str | os.PathLike[str] | None = None,
) -> Records:
  """Opens a split to fetch single pictures from, undecoded.

  Args:
    name: As in `load`.
    split: As in `load`.
    data_dir: As in `load`.
    cache_dir: As in `load`.

  Returns:
    The records of the split.

  Raises:
    UserError: If the set or split cannot be had; says what can.
    DataError: If a file of the set is missing or broken.
  """
  return _records(name, split, data_dir, cache_dir)[1]


def overlap(
  name: str | os.PathLike[str],
  first: str,
  second: str,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  cache_dir: str | os.PathLike[str] | None = None,
) -> int:
  """Counts the pictures that two splits of a set have in common.

  Args:
    name: As in `load`.
    first: A split in the language of TFDS.
    second: Another one.
    data_dir: As in `load`.
    cache_dir: As in `load`.

  Returns:
    Their number.

  Raises:
    UserError: If the set or a split cannot be had.
  """
  sizes = _open(name, data_dir, cache_dir).sizes
  return sum(
    max(0, min(a[2], b[2]) - max(a[1], b[1]))
    for a in _ranges(name, first, sizes)
    for b in _ranges(name, second, sizes)
    if a[0] == b[0]
  )


def splits(
  name: str | os.PathLike[str],
  *,
  data_dir: str | os.PathLike[str] | None = None,
  cache_dir: str | os.PathLike[str] | None = None,
) -> dict[str, int]:
  """Counts the pictures of each split of a set.

  Args:
    name: As in `load`.
    data_dir: As in `load`.
    cache_dir: As in `load`.

  Returns:
    Number of pictures by the name of the split.

  Raises:
    UserError: If the set cannot be had; says what can.
  """
  return dict(_open(name, data_dir, cache_dir).sizes)


def available(
  data_dir: str | os.PathLike[str] | None = None,
) -> dict[str, dict[str, int]]:
  """Lists the sets that `load` can read by name.

  Args:
    data_dir: As in `load`.

  Returns:
    Number of pictures by split, by the name of the set; 'digits' comes first
    and every readable set in `data_dir` follows.
  """
  found = {'digits': {'train': 1797}}
  root = _data_dir(data_dir)
  if root is None:
    return found
  # A set that cannot be read, or is doubtful, says why when it is asked for.
  for pattern in ('*/*/dataset_info.json', '*/*/*/dataset_info.json'):
    for folder in sorted({path.parents[1] for path in root.glob(pattern)}):
      name = str(folder.relative_to(root))
      version = latest_version(folder)
      with contextlib.suppress(UserError, DataError):
        if version:
          found[name] = dict(open_tfds(name, version).sizes)
  for folder in sorted(root.iterdir()) if root.is_dir() else ():
    if _is_own(folder):
      with contextlib.suppress(UserError, DataError), warnings.catch_warnings():
        warnings.simplefilter('ignore', DoubtWarning)
        found[folder.name] = dict(open_folder(folder).sizes)
  return found


def pictures_from_arrays(
  images: np.ndarray,
  labels: np.ndarray,
  *,
  class_names: tuple[str, ...],
  name: str,
  source: np.ndarray | None = None,
  file_names: tuple[str, ...] | None = None,
) -> Pictures:
  """Makes `Pictures` of arrays that are already checked.

  Args:
    images: uint8[N, H, W, C].
    labels: int[N].
    class_names: One a class.
    name: Name of the set.
    source: int[N], source ids; None gives 0 to N - 1.
    file_names: One a picture, if they are known.

  Returns:
    `Pictures`.
  """
  if source is None:
    source = np.arange(len(labels))
  labels = np.asarray(labels, np.int32)
  digest = hashlib.sha256(np.ascontiguousarray(images).data)
  digest.update(repr((images.shape, class_names)).encode())
  digest.update(labels.tobytes())
  return Pictures(
    images=images,
    labels=labels,
    source=np.asarray(source, np.int32),
    class_names=class_names,
    name=name,
    fingerprint=digest.hexdigest(),
    file_names=file_names,
  )


def subset(pictures: Pictures, rows: np.ndarray | slice) -> Pictures:
  """Takes some of the pictures; they keep their source ids.

  Args:
    pictures: Any.
    rows: Indices, bool[N] or a slice.

  Returns:
    `Pictures` with a fingerprint of their own.
  """
  names = pictures.file_names
  chosen = np.arange(len(pictures.labels))[rows]
  return pictures_from_arrays(
    pictures.images[rows],
    pictures.labels[rows],
    class_names=pictures.class_names,
    name=pictures.name,
    source=pictures.source[rows],
    file_names=None if names is None else tuple(names[row] for row in chosen),
  )


def padded(pictures: Pictures, size: int) -> Pictures:
  """Puts square pictures amid zeros, which leaves their pixels as they are.

  Args:
    pictures: Any.
    size: Height and width to give them, at least what they have.

  Returns:
    `Pictures`; those of the right size come back as they are.

  Raises:
    UserError: If they are larger.
  """
  height, width = pictures.images.shape[1:3]
  if max(height, width) > size:
    raise UserError(
      f'the pictures of {pictures.name} are {height}x{width}, larger than '
      f'{size}x{size}; ask for at least {max(height, width)}'
    )
  if height == width == size:
    return pictures
  sides = [
    ((size - n) // 2, size - n - (size - n) // 2) for n in (height, width)
  ]
  return pictures_from_arrays(
    np.pad(pictures.images, [(0, 0), *sides, (0, 0)]),
    pictures.labels,
    class_names=pictures.class_names,
    name=pictures.name,
    source=pictures.source,
    file_names=pictures.file_names,
  )


def usual_splits(sizes: Mapping[str, int]) -> tuple[str, str]:
  """Names the split to learn from and the one to be tested on.

  Args:
    sizes: Number of pictures by the name of the split; see `splits`.

  Returns:
    'train' and 'test', or the like; the same name twice if there is nothing
    that is held out.
  """
  train = 'train' if 'train' in sizes else next(iter(sizes))
  heldout = ('test', 'validation', 'val')
  return train, next((s for s in heldout if s in sizes), train)


def shuffled(pictures: Pictures, seed: int) -> Pictures:
  """Gives the pictures in a random order."""
  rng = np.random.default_rng([seed, 1])
  return subset(pictures, rng.permutation(len(pictures.labels)))


def divide(pictures: Pictures) -> tuple[Pictures, Pictures]:
  """Divides a set with a single split: a quarter is to be learnt from.

  Args:
    pictures: Any, in random order.

  Returns:
    The pictures to learn from, which come first, and those held out.
  """
  border = round(TRAIN_SHARE * len(pictures.labels))
  return (
    subset(pictures, slice(border)),
    subset(pictures, slice(border, None)),
  )


def disjoint(*sets: Pictures) -> tuple[Pictures, ...]:
  """Renumbers source ids, so that pictures of several sets share none.

  Within a set, pictures that shared an id still do.

  Args:
    *sets: Sets whose ids may overlap by accident, as those of two splits.

  Returns:
    The sets with ids from 0 in the order given, without gaps.
  """
  renumbered, start = [], 0
  for pictures in sets:
    ids, position = np.unique(pictures.source, return_inverse=True)
    source = (start + position).astype(np.int32)
    renumbered.append(pictures._replace(source=source))
    start += len(ids)
  return tuple(renumbered)


def _open(
  name: str | os.PathLike[str],
  data_dir: str | os.PathLike[str] | None,
  cache_dir: str | os.PathLike[str] | None,
) -> Opened:
  """Finds out what `name` names."""
  if not isinstance(name, (str, os.PathLike)):
    raise UserError(
      f'the data set is a {type(name).__name__} but must be a name or a path'
    )
  name = os.fspath(name)
  if name == 'digits':
    return open_tfds(name, _prepare_digits(cache_dir))
  root = _data_dir(data_dir)
  base, _, version = name.partition(':')
  if root and base:
    folder = latest_version(root / base, version)
    if folder:
      return open_tfds(name, folder)
    if _is_own(root / base):
      return open_folder(root / base)
  path = Path(name)
  if (path / 'dataset_info.json').is_file():
    return open_tfds(name, path)
  if path.is_dir():
    return open_folder(path)
  if path.suffix.lower() == '.npz':
    return open_npz(path)
  raise UserError(_what_there_is(name, base, version, root))


def _is_own(folder: Path) -> bool:
  """Tells whether a folder of a data_dir holds class folders of pictures."""
  # TFDS unpacks archives into `downloads`, beside the sets.
  return folder.name != 'downloads' and holds_pictures(folder)


def _data_dir(data_dir: str | os.PathLike[str] | None) -> Path | None:
  """Gives the folder of prepared sets, if there is one."""
  chosen = data_dir or os.environ.get('JAXADV_DATA_DIR')
  return Path(chosen).expanduser() if chosen else None


def _what_there_is(
  name: str, base: str, version: str, root: Path | None
) -> str:
  """Says what can be loaded in place of what cannot."""
  place = f'in {root}' if root else 'as no data_dir is given'
  sizes = available(root)
  there = ', '.join(sizes)
  if Path(name).is_file():
    return f'{name} is neither a folder nor an .npz file'
  if os.sep in name and not re.fullmatch(r'\w+/[\w.]+', base):
    return f'there is no folder or .npz file {name}; sets by name are: {there}'
  if root and version and latest_version(root / base):
    return f'there is no version {version} of {base} {place}; leave it out'
  if root and (root / base).is_dir():
    return f'{root / base} holds neither a prepared set nor pictures'
  known = tfds.list_builders(with_community_datasets=False)
  near = ' or '.join(
    near_names(base, sizes, 0.75) or near_names(base, known, 0.75)
  )
  if near and base.partition('/')[0] not in known:
    return f'no data set {name} {place}; did you mean {near}? There is: {there}'
  target = root or 'DIR'
  return (
    f'no data set {name} {place} (there is: {there}); prepare it once with '
    f"pip install 'jaxadv[prepare]' and python -c "
    f'"import tensorflow_datasets as tfds; tfds.builder({base!r}, '
    f"data_dir='{target}', file_format='array_record')"
    f'.download_and_prepare()", then pass data_dir={target}'
  )


def _records(
  name: str | os.PathLike[str],
  split: str,
  data_dir: str | os.PathLike[str] | None,
  cache_dir: str | os.PathLike[str] | None,
) -> tuple[Opened, Records]:
  """Opens a set and one of its splits."""
  opened = _open(name, data_dir, cache_dir)
  return opened, opened.records(_ranges(name, split, opened.sizes))


def _ranges(
  name: str | os.PathLike[str], split: str, sizes: Mapping[str, int]
) -> list[Range]:
  """Turns a split in the language of TFDS into (name, start, stop)."""
  if len(sizes) == 1:
    # TFDS cannot slice 'all'.
    split = re.sub(r'\ball\b', next(iter(sizes)), split)
  infos = {key: SimpleNamespace(num_examples=n) for key, n in sizes.items()}
  there = ', '.join(f'{key} ({n})' for key, n in sizes.items())
  try:
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
  except (ValueError, NotImplementedError, AssertionError) as error:
    raise UserError(
      f'the data set {name} has no split {split}; splits are {there}, and '
      "slices such as 'train[:1000]' or 'train[80%:]'"
    ) from error
  ranges = [
    (
      part.splitname,
      part.from_ or 0,
      sizes[part.splitname] if part.to is None else part.to,
    )
    for part in parts
  ]
  if not sum(stop - start for _, start, stop in ranges):
    raise UserError(f'the split {split} of {name} is empty; splits are {there}')
  return ranges


def _order(n: int, rows: Iterable[int] | None, seed: int | None) -> np.ndarray:
  """Gives the rows to read, in order."""
  if seed is not None:
    if rows is not None:
      raise UserError('rows and seed are both given; give one of them')
    return np.random.default_rng(seed).permutation(n)
  if rows is None:
    return np.arange(n)
  given = _whole_numbers('rows', rows, 'positions in the split')
  outside = (given < 0) | (given >= n)
  if outside.any():
    raise UserError(
      f'rows holds {given[outside][0]} but the split has rows 0 to {n - 1}'
    )
  return given


def _whole_numbers(name: str, given: Any, what: str) -> np.ndarray:
  """Gives a list of whole numbers as int[n]; a mask is none."""
  numbers = np.asarray(list(given) if isinstance(given, Iterable) else given)
  if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in 'iu'):
    raise UserError(
      f'{name} is {reprlib.repr(given)} but must list whole numbers, such as '
      f'[3, 5]: {what}'
    )
  return numbers.astype(int)


def _prepare_digits(cache_dir: str | os.PathLike[str] | None) -> Path:
  """Prepares the digits on first use; gives the folder of the TFDS set."""
  default = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'

  def make(folder: Path, work: Path) -> None:
    # Here, as scikit-learn takes a second to import.
    from jaxadv.data.builders.digits.builder import Builder

    builder = Builder(data_dir=work, file_format='array_record')
    with quiet_tfds():
      builder.download_and_prepare()
    for file in Path(builder.data_dir).iterdir():
      file.rename(folder / file.name)

  cache = Cache(cache_dir or Path(default) / 'jaxadv')
  version = code_version('jaxadv.data.builders.digits.builder')
  return cache.get_or_make(
    'data', version, {'name': 'digits'}, make, alone=True
  )
