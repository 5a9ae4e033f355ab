"""Adversarial sets on disk, as TFDS data sets that others can read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxadv.data import images as image_tools
from jaxadv.data.sources import load, quiet_tfds
from jaxadv.errors import DataError, UserError
from jaxadv.sets.types import OPTIONAL, AdversarialSet, check_kind
from jaxadv.storage import explain_full_disk

_SPLIT = 'train'  # TFDS keeps the name 'all' for itself.


class AdversarialPictures(  # type: ignore[call-arg]  # A keyword of TFDS.
  tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """Writes an `AdversarialSet`; its features are those of the set."""

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, adversarial: AdversarialSet, data_dir: Path) -> None:
    self._set = adversarial
    columns = {name: getattr(adversarial, name) for name in OPTIONAL}
    self._optional = {k: v for k, v in columns.items() if v is not None}
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=(
        f'Adversarial pictures of kind {self._set.kind}; `source` is the '
        'index of the clean picture, `success` tells whether the victim errs '
        'on the 8-bit picture, `success_float` on it before rounding.'
      ),
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(
            shape=self._set.images.shape[1:], encoding_format='png'
          ),
          'label': tfds.features.ClassLabel(names=self._set.class_names),
          'source': np.int32,
          'success': np.bool_,
          'success_float': np.bool_,
        }
        | {
          name: tfds.features.Tensor(
            shape=column.shape[1:],
            dtype=column.dtype,
            # TFDS would store float64 as float32.
            encoding=tfds.features.Encoding.BYTES,
          )
          for name, column in self._optional.items()
        }
      ),
      supervised_keys=('image', 'label'),
      metadata=tfds.core.MetadataDict(
        kind=self._set.kind, provenance=self._set.provenance
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # Nothing to download.
    return {_SPLIT: self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    for row, pixels in enumerate(self._set.images):
      yield (
        row,
        {
          'image': image_tools.encode(pixels),
          'label': int(self._set.labels[row]),
          'source': int(self._set.source[row]),
          'success': bool(self._set.success[row]),
          'success_float': bool(self._set.success_float[row]),
        }
        | {name: column[row] for name, column in self._optional.items()},
      )


def write(
  adversarial: AdversarialSet, directory: str | os.PathLike[str]
) -> None:
  """Writes a set as a TFDS data set, whole or not at all.

  Without this package and without TensorFlow it is read by
  `tfds.builder_from_directory(directory).as_data_source('train')`; its
  pictures are PNG, kind and provenance are in `info.metadata`.

  Args:
    adversarial: The set, of at least one picture.
    directory: Where; must be empty or absent.

  Raises:
    UserError: If the set is empty or its kind is no word, or the directory
      holds something.
    DataError: If the disk is full.
  """
  check_kind(adversarial.kind)
  directory = Path(directory)
  if not len(adversarial.labels):
    raise UserError(f'the {adversarial.kind} set is empty; nothing to write')
  if directory.exists() and any(directory.iterdir()):
    raise UserError(f'{directory} is not empty; choose another directory')
  scratch = directory.with_name(f'.{directory.name}.{os.getpid()}.partial')
  with explain_full_disk(directory):
    try:
      scratch.mkdir(parents=True)
      builder = AdversarialPictures(adversarial, scratch)
      with quiet_tfds():
        builder.download_and_prepare()
      os.rename(builder.data_dir, directory)
    finally:
      shutil.rmtree(scratch, ignore_errors=True)


def read(directory: str | os.PathLike[str]) -> AdversarialSet:
  """Reads what `write` wrote.

  Args:
    directory: The folder of the data set.

  Returns:
    The set, in the order in which it was written.

  Raises:
    DataError: If there is no such set or a record is broken; names it.
  """
  directory = Path(directory)
  if not (directory / 'dataset_info.json').is_file():
    raise DataError(f'{directory} holds no adversarial set')
  builder = tfds.builder_from_directory(directory)
  metadata = builder.info.metadata or {}
  if not {'kind', 'provenance'} <= metadata.keys():
    raise DataError(
      f'{directory} is a TFDS data set but no adversarial one: it names no '
      'kind and no provenance; read it with jaxadv.data.sources.load'
    )
  channels = builder.info.features['image'].shape[-1]
  pictures = load(str(directory), _SPLIT, channels=channels)
  decoders = {'image': tfds.decode.SkipDecoding()}
  source = builder.as_data_source(split=_SPLIT, decoders=decoders)
  examples = source.__getitems__(range(len(source)))
  column = lambda key, dtype: np.array([e[key] for e in examples], dtype)
  return AdversarialSet(
    images=pictures.images,
    labels=pictures.labels,
    source=column('source', np.int32),
    success_float=column('success_float', bool),
    success=column('success', bool),
    kind=metadata['kind'],
    class_names=pictures.class_names,
    provenance=metadata['provenance'],
    **{
      name: column(name, builder.info.features[name].np_dtype)
      for name in OPTIONAL
      if name in builder.info.features
    },
  )
