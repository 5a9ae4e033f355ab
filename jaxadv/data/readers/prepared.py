"""Reads prepared TFDS sets in array_record form, without TensorFlow."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from jaxadv.data.readers.records import Fetched, Opened, Range, Records
from jaxadv.errors import DataError, UserError

# Splits whose labels are kept secret: TFDS stores -1 there.
_WITHOUT_LABELS = {'imagenet2012': {'test'}}


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
  """Keeps TFDS from announcing a download and drawing progress bars."""
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.enable_progress_bar()


def latest_version(folder: Path, version: str = '') -> Path | None:
  """Gives the folder of a version of a prepared set, if it lies there.

  Args:
    folder: Holds the versions.
    version: How the version begins; the newest of several is taken.

  Returns:
    The folder of its dataset_info.json, or None.
  """
  found = [
    path.parent
    for path in folder.glob('*/dataset_info.json')
    if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name)
    and path.parent.name.startswith(version)
  ]
  numbers = lambda path: [int(number) for number in path.name.split('.')]
  return max(found, key=numbers, default=None)


def open_tfds(name: str, folder: Path) -> Opened:
  """Opens a prepared TFDS set.

  Args:
    name: What to call it in errors.
    folder: Holds its dataset_info.json.

  Returns:
    The set, without splits that have no labels. File names are those of its
    feature `file_name`, if it has one.

  Raises:
    UserError: If it is in another format or no classification set.
    DataError: If its description is broken.
  """
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
  class_names = tuple(info.features[label_key].names)
  num_classes = info.features[label_key].num_classes
  if len(class_names) != num_classes:
    raise DataError(
      f'{folder} names {len(class_names)} classes of {num_classes}: '
      f'{label_key}.labels.txt is broken; prepare the data set again'
    )
  unlabelled = _WITHOUT_LABELS.get(builder.name, ())
  sizes = {
    split: part.num_examples
    for split, part in info.splits.items()
    if split not in unlabelled
  }

  def records(ranges: Sequence[Range]) -> Records:
    split = '+'.join(f'{name}[{start}:{stop}]' for name, start, stop in ranges)
    return _records(builder, split, image_key, label_key)

  return Opened(sizes, class_names, records)


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


def _records(
  builder: tfds.core.DatasetBuilder, split: str, image_key: str, label_key: str
) -> Records:
  """Gives the encoded pictures of a split of a prepared set."""
  try:
    files = [
      (Path(part.filename), part.skip, part.take)
      for part in builder.info.splits[split].file_instructions
    ]
  except ValueError as error:  # The template of file names is broken.
    raise DataError(
      f'cannot tell the files of the data set {builder.name}: {error}'
    ) from error
  for file, _, _ in files:
    if not file.is_file():
      raise DataError(f'{file} is missing; prepare the data set again')
  decoders = {image_key: tfds.decode.SkipDecoding()}
  named = 'file_name' in builder.info.features

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

  def fetch(rows: Sequence[int]) -> Fetched:
    try:
      examples = source.__getitems__([int(row) for row in rows])
      encoded = [example[image_key] for example in examples]
      labels = [example[label_key] for example in examples]
      if None in encoded or None in labels:  # What a cut-off file gives.
        raise ValueError('it is empty')
      file_names = [e['file_name'].decode() for e in examples] if named else []
    except Exception as error:  # Each layer of a record fails in its own way.
      if len(rows) == 1:
        raise DataError(f'{where(rows[0])} is broken: {error}') from error
      for row in rows:
        fetch([row])  # Finds out which one it is.
      raise
    return Fetched(encoded, labels, file_names or None)

  return Records(len(source), fetch, where)
