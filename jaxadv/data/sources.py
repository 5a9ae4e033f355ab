"""Reads labelled pictures: prepared TFDS sets, the digits, a user's own."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxadv.data import images as image_tools
from jaxadv.errors import DataError, UserError
from jaxadv.storage import Cache

_SUFFIXES = ('.png', '.jpg', '.jpeg')
_CHUNK = 500
# Below this many bytes a file decodes faster than threads can take turns.
_WORTH_THREADS = 10_000


class Pictures(NamedTuple):
  """Clean pictures with their labels, on the host.

  Attributes:
    images: uint8[N, H, W, C].
    labels: int32[N].
    source: int32[N], index of the picture in the split as it was read.
    class_names: One a class.
    name: Name of the set.
    fingerprint: SHA-256 of pictures, labels and class names.
  """

  images: np.ndarray
  labels: np.ndarray
  source: np.ndarray
  class_names: tuple[str, ...]
  name: str
  fingerprint: str


class _Split(NamedTuple):
  """Encoded pictures of one split.

  Attributes:
    n: Number of pictures.
    fetch: `rows -> (encoded pictures, labels)`.
    where: `row -> str`, names the file and record in errors.
  """

  n: int
  fetch: Callable[[Sequence[int]], tuple[list[bytes], list[int]]]
  where: Callable[[int], str]


class _Opened(NamedTuple):
  """A set whose splits can be read.

  Attributes:
    infos: Splits by name; each has `num_examples`.
    class_names: One a class.
    read: `(split, channels, image_size, limit) -> (images, labels)`.
  """

  infos: Mapping[str, Any]
  class_names: tuple[str, ...]
  read: Callable[
    [str, int, int | None, int | None], tuple[np.ndarray, np.ndarray]
  ]


def load(
  name: str,
  split: str = 'all',
  *,
  data_dir: str | os.PathLike[str] | None = None,
  cache_dir: str | os.PathLike[str] | None = None,
  image_size: int | None = None,
  channels: int = 3,
  limit: int | None = None,
) -> Pictures:
  """Loads a split of a set into memory; downloads nothing.

  Args:
    name: One of
      'digits', which comes with scikit-learn and is prepared on first use
      (1,797 pictures, 32x32);
      a TFDS set that lies in `data_dir` in array_record form, as 'cifar10',
      'cifar10:3.0.2' or 'name/config';
      the path of one TFDS set (the folder of its dataset_info.json);
      the path of a folder of class folders of PNG or JPEG files, or of a
      folder of such folders, one a split;
      the path of an .npz with `images` (uint8, or floating in [0, 1],
      [N, H, W] or [N, H, W, C]), `labels` (integers [N]) and perhaps
      `class_names`.
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
    limit: Read only so many pictures, the first ones.

  Returns:
    `Pictures` in the order of the split.

  Raises:
    UserError: If the set, split or size cannot be had; says what can.
    DataError: If a stored picture is broken; names file and record.
  """
  if channels not in (1, 3):
    raise UserError(f'channels is {channels} but must be 1 or 3')
  for argument, value in (('image_size', image_size), ('limit', limit)):
    if value is not None and value < 1:
      raise UserError(f'{argument} is {value} but must be at least 1')
  opened = _open(name, data_dir, cache_dir)
  split = _check_split(name, split, opened.infos)
  images, labels = opened.read(split, channels, image_size, limit)
  return pictures_from_arrays(
    images, labels, class_names=opened.class_names, name=Path(name).name
  )


def splits(
  name: str,
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
  return _sizes(_open(name, data_dir, cache_dir))


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
  for pattern in ('*/*/dataset_info.json', '*/*/*/dataset_info.json'):
    for folder in sorted({path.parents[1] for path in root.glob(pattern)}):
      name = str(folder.relative_to(root))
      version = _latest_version(folder)
      # A set that cannot be read says why when it is asked for.
      with contextlib.suppress(UserError, DataError):
        if version:
          found[name] = _sizes(_open_tfds(name, version))
  return found


def pictures_from_arrays(
  images: np.ndarray,
  labels: np.ndarray,
  *,
  class_names: tuple[str, ...],
  name: str,
  source: np.ndarray | None = None,
) -> Pictures:
  """Makes `Pictures` of arrays that are already checked.

  Args:
    images: uint8[N, H, W, C].
    labels: int[N].
    class_names: One a class.
    name: Name of the set.
    source: int[N], source ids; None gives 0 to N - 1.

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
  )


def subset(pictures: Pictures, rows: np.ndarray) -> Pictures:
  """Takes some of the pictures; they keep their source ids.

  Args:
    pictures: Any.
    rows: Indices or bool[N].

  Returns:
    `Pictures` with a fingerprint of their own.
  """
  return pictures_from_arrays(
    pictures.images[rows],
    pictures.labels[rows],
    class_names=pictures.class_names,
    name=pictures.name,
    source=pictures.source[rows],
  )


def _open(
  name: str,
  data_dir: str | os.PathLike[str] | None,
  cache_dir: str | os.PathLike[str] | None,
) -> _Opened:
  """Finds out what `name` names."""
  if name == 'digits':
    return _open_tfds(name, _prepare_digits(cache_dir))
  root = _data_dir(data_dir)
  base, _, version = name.partition(':')
  if root and re.fullmatch(r'[\w/.]+', base):
    folder = _latest_version(root / base, version)
    if folder:
      return _open_tfds(name, folder)
  path = Path(name)
  if (path / 'dataset_info.json').is_file():
    return _open_tfds(name, path)
  if path.is_dir():
    return _open_folder(path)
  if path.suffix == '.npz':
    return _open_npz(path)
  raise UserError(_how_to_prepare(name, base, root))


def _sizes(opened: _Opened) -> dict[str, int]:
  """Counts the pictures of each split."""
  return {key: info.num_examples for key, info in opened.infos.items()}


def _data_dir(data_dir: str | os.PathLike[str] | None) -> Path | None:
  """Gives the folder of prepared sets, if there is one."""
  chosen = data_dir or os.environ.get('JAXADV_DATA_DIR')
  return Path(chosen).expanduser() if chosen else None


def _latest_version(folder: Path, version: str = '') -> Path | None:
  """Gives the folder of a version of a prepared set, if it lies there."""
  found = [
    path.parent
    for path in folder.glob('*/dataset_info.json')
    if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name)
    and path.parent.name.startswith(version)
  ]
  numbers = lambda path: [int(number) for number in path.name.split('.')]
  return max(found, key=numbers, default=None)


def _how_to_prepare(name: str, base: str, root: Path | None) -> str:
  """Says what can be loaded and how to prepare what cannot."""
  place = f'in {root}' if root else 'as no data_dir is given'
  there = ', '.join(available(root)) if root else 'digits'
  if os.sep in name and not re.fullmatch(r'\w+/[\w.]+', base):
    return f'there is no folder or .npz file {name}; sets by name are: {there}'
  target = root or 'DIR'
  return (
    f'no data set {name} {place} (there is: {there}); prepare it once with '
    f"pip install 'jaxadv[prepare]' and python -c "
    f'"import tensorflow_datasets as tfds; tfds.builder({base!r}, '
    f"data_dir='{target}', file_format='array_record')"
    f'.download_and_prepare()", then pass --data_dir={target}'
  )


def _check_split(name: str, split: str, infos: Mapping[str, Any]) -> str:
  """Gives the split as TFDS wants it, or says which ones there are."""
  if len(infos) == 1:
    # TFDS cannot slice 'all'.
    split = re.sub(r'\ball\b', next(iter(infos)), split)
  there = ', '.join(f'{key} ({i.num_examples})' for key, i in infos.items())
  try:
    n = sum(stop - start for _, start, stop in _ranges(split, infos))
  except (ValueError, NotImplementedError, AssertionError) as error:
    raise UserError(
      f'the data set {name} has no split {split}; splits are {there}, and '
      "slices such as 'train[:1000]' or 'train[80%:]'"
    ) from error
  if not n:
    raise UserError(f'the split {split} of {name} is empty; splits are {there}')
  return split


def _ranges(split: str, infos: Mapping[str, Any]) -> list[tuple[str, int, int]]:
  """Turns a split in the language of TFDS into (name, start, stop)."""
  parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
  return [
    (
      part.splitname,
      part.from_ or 0,
      infos[part.splitname].num_examples if part.to is None else part.to,
    )
    for part in parts
  ]


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
  return cache.get_or_make('data', 1, {'name': 'digits'}, make)


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
  """Keeps TFDS from announcing a download and drawing progress bars."""
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.enable_progress_bar()


def _open_tfds(name: str, folder: Path) -> _Opened:
  """Opens a prepared TFDS set."""
  try:
    builder = tfds.builder_from_directory(folder)
  except Exception as error:  # TFDS lets any parser's error through.
    raise DataError(
      f'cannot read the description of the data set in {folder}: {error}'
    ) from error
  info = builder.info
  if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise UserError(
      f'the data set {name} in {folder} is stored as {info.file_format}, '
      'which needs TensorFlow; prepare it again with '
      "file_format='array_record'"
    )
  image_key, label_key = _keys(name, info)

  def read(split, channels, image_size, limit):
    return _decode_all(
      _tfds_split(builder, split, image_key, label_key),
      channels,
      image_size,
      limit,
    )

  names = tuple(info.features[label_key].names)
  return _Opened(info.splits, names, read)


def _keys(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
  """Gives the names of the image and label features."""
  features = info.features
  of_type = lambda kind: [k for k, f in features.items() if isinstance(f, kind)]
  image_keys = of_type(tfds.features.Image)
  label_keys = of_type(tfds.features.ClassLabel)
  if not image_keys or not label_keys:
    raise UserError(
      f'the data set {name} has the features {", ".join(features)}; a '
      'classification set needs an image and a class label'
    )
  preferred = info.supervised_keys or ()
  choose = lambda keys: next((k for k in keys if k in preferred), keys[0])
  image_key = choose(image_keys)
  if features[image_key].np_dtype != np.uint8:
    raise UserError(
      f'the pictures of the data set {name} are '
      f'{np.dtype(features[image_key].np_dtype)}; only 8-bit ones can be read'
    )
  return image_key, choose(label_keys)


def _tfds_split(
  builder: tfds.core.DatasetBuilder, split: str, image_key: str, label_key: str
) -> _Split:
  """Gives the encoded pictures of a split of a prepared set."""
  files = [
    (Path(part.filename), part.skip, part.take)
    for part in builder.info.splits[split].file_instructions
  ]
  for file, _, _ in files:
    if not file.is_file():
      raise DataError(f'{file} is missing; prepare the data set again')
  decoders = {image_key: tfds.decode.SkipDecoding()}

  def where(row: int) -> str:
    for file, skip, size in files:
      if row < size:
        return f'record {skip + row} of {file}'
      row -= size
    raise IndexError(row)

  try:
    source = builder.as_data_source(split=split, decoders=decoders)
  except RuntimeError as error:
    names = ', '.join(str(file) for file, _, _ in files)
    raise DataError(f'cannot open {names}: {error}') from error

  def fetch(rows):
    try:
      examples = source.__getitems__(list(rows))
      encoded = [example[image_key] for example in examples]
      labels = [example[label_key] for example in examples]
      if None in encoded or None in labels:  # What a cut-off file gives.
        raise ValueError('it is empty')
    except Exception as error:  # Each layer of a record fails in its own way.
      if len(rows) > 1:
        parts = [fetch([row]) for row in rows]
        return [p[0][0] for p in parts], [p[1][0] for p in parts]
      raise DataError(f'{where(rows[0])} is broken: {error}') from error
    return encoded, labels

  return _Split(len(source), fetch, where)


def _open_folder(root: Path) -> _Opened:
  """Opens a folder of class folders, or of splits of class folders."""
  folders = _folders(root)
  if any(_files(folder) for folder in folders):
    roots = {'train': root}
  else:
    roots = {folder.name: folder for folder in folders if _folders(folder)}
  names = tuple(
    sorted({f.name for part in roots.values() for f in _folders(part)})
  )
  index = {name: position for position, name in enumerate(names)}
  records = {
    split: [
      (file, index[folder.name])
      for folder in _folders(part)
      for file in _files(folder)
    ]
    for split, part in roots.items()
  }
  if not any(records.values()):
    raise UserError(
      f'{root} holds no pictures; expected a folder for each class with '
      f'{", ".join(_SUFFIXES)} files in it'
    )
  infos = {
    split: SimpleNamespace(num_examples=len(files))
    for split, files in records.items()
  }

  def read(split, channels, image_size, limit):
    chosen = [
      record
      for part, start, stop in _ranges(split, infos)
      for record in records[part][start:stop]
    ]

    def fetch(rows):
      try:
        encoded = [chosen[row][0].read_bytes() for row in rows]
      except OSError as error:
        raise DataError(f'cannot read a picture: {error}') from error
      return encoded, [chosen[row][1] for row in rows]

    where = lambda row: str(chosen[row][0])
    opened = _Split(len(chosen), fetch, where)
    return _decode_all(opened, channels, image_size, limit)

  return _Opened(infos, names, read)


def _folders(folder: Path) -> list[Path]:
  """Lists the folders in a folder, without hidden ones."""
  return sorted(
    path
    for path in folder.iterdir()
    if path.is_dir() and not path.name.startswith('.')
  )


def _files(folder: Path) -> list[Path]:
  """Lists the pictures in a folder, without hidden ones."""
  return sorted(
    path
    for path in folder.iterdir()
    if path.suffix.lower() in _SUFFIXES and not path.name.startswith('.')
  )


def _decode_all(
  split: _Split, channels: int, image_size: int | None, limit: int | None
) -> tuple[np.ndarray, np.ndarray]:
  """Decodes the first `limit` pictures of a split into one array."""
  n = split.n if limit is None else min(limit, split.n)
  labels = np.empty(n, np.int32)
  images = np.empty(0, np.uint8)

  def decode(row: int, encoded: bytes) -> np.ndarray:
    try:
      return image_tools.decode(encoded, channels, image_size)
    except ValueError as error:
      raise DataError(f'{split.where(row)} is broken: {error}') from error

  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for start in range(0, n, _CHUNK):
      rows = range(start, min(start + _CHUNK, n))
      encoded, labels[start : rows.stop] = split.fetch(rows)
      threaded = len(encoded[0]) >= _WORTH_THREADS
      decoded = (pool.map if threaded else map)(decode, rows, encoded)
      for row, pixels in zip(rows, decoded, strict=True):
        if row == 0:
          images = np.empty((n, *pixels.shape), np.uint8)
        elif pixels.shape != images.shape[1:]:
          raise UserError(
            f'pictures differ in size: {pixels.shape[:2]} in '
            f'{split.where(row)} but {images.shape[1:3]} in {split.where(0)}; '
            'pass an image size'
          )
        images[row] = pixels
  return images, labels


def _open_npz(path: Path) -> _Opened:
  """Opens an .npz file with images and labels."""
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
  infos = {'train': SimpleNamespace(num_examples=len(labels))}

  def read(split, channels, image_size, limit):
    rows = np.concatenate(
      [np.arange(start, stop) for _, start, stop in _ranges(split, infos)]
    )[:limit]
    chosen = image_tools.with_channels(images[rows], channels)
    if image_size is not None:
      chosen = image_tools.resize(chosen, image_size)
    return chosen, labels[rows]

  return _Opened(infos, tuple(str(name) for name in given), read)


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
    images = image_tools.to_uint8(images.astype(np.float32))
  elif images.dtype != np.uint8:
    raise UserError(
      f'images in {path} are {images.dtype} but must be uint8, or floating '
      'in [0, 1]'
    )
  return images, labels.astype(np.int32)
