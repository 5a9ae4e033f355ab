"""Detectors in folders: a description in JSON, and variables in an .npz.

`detector.json` says what the detector is and holds the hash of
`variables.npz`, which has the frozen prefix, the suffix and the head. Nothing
in either is code: loading unpickles nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import models
from jaxadv.classifier import (
  Classifier,
  Normalise,
  Resized,
  from_linen,
  identity,
)
from jaxadv.detectors.backbone import Design, backbone_detector
from jaxadv.detectors.fitted import FittedDetector
from jaxadv.errors import DataError, UserError
from jaxadv.models.weights import native
from jaxadv.storage import read_json, write_json
from jaxadv.training import TrainState
from jaxadv.types import Detector, Images, Keys, PyTree, Scores

FORMAT_VERSION = 2
# Of a Linen module, what is no setting of the network.
_LINEN_FIELDS = ('parent', 'name')


class About(NamedTuple):
  """What a saved detector says of itself.

  Attributes:
    backbone: One of `jaxadv.models.BACKBONES`.
    width: Multiplies its channels.
    image_size: Side of the square pictures that the detector takes, in pixels.
    kind: The kind of adversarial picture that it was trained on.
    data: Name of the data set.
    num_classes: Classes of the data set.
    auc: On its kind, on pictures it was not trained on, in [0, 1]; None if
      not measured.
  """

  backbone: str
  width: float
  image_size: int
  kind: str
  data: str
  num_classes: int
  auc: float | None = None


def save(
  folder: str | os.PathLike[str],
  design: Design,
  classifier: Classifier,
  variables: PyTree,
  about: About,
) -> None:
  """Writes a fitted detector; a detector already there is replaced.

  Args:
    folder: Made if need be.
    design: The detector's design.
    classifier: The backbone with its weights and preprocessing.
    variables: `{'params': ..., 'batch_stats': ...}` of one detector, as in
      the state that `backbone_detector(design).fit` gives.
    about: What else there is to say of it.

  Raises:
    UserError: If preprocessing or module have settings that JSON cannot hold.
    DataError: If the disk is full.
  """
  folder = Path(folder)
  prefix, _ = models.split_variables(
    design.module, classifier.variables, design.frozen_until
  )
  settings = {
    'module': _settings(design.module, _LINEN_FIELDS),
    'design': _settings(design, ('module',)),
    'preprocess': _describe(classifier.preprocess, about.backbone),
  }
  try:
    json.dumps(settings)
  except TypeError as error:
    raise UserError(
      f'the detector on {about.backbone} cannot be saved: {error}; use a '
      'network whose settings are numbers and names'
    ) from error
  # The description last: whoever finds it finds everything.
  (folder / 'detector.json').unlink(missing_ok=True)
  path = folder / 'variables.npz'
  native.write_variables(path, {'prefix': prefix, 'detector': variables})
  write_json(
    folder / 'detector.json',
    {'format_version': FORMAT_VERSION}
    | about._asdict()
    | settings
    | {'sha256': _sha256(path)},
  )


def load(folder: str | os.PathLike[str]) -> tuple[FittedDetector, About]:
  """Reads a saved detector.

  Args:
    folder: A folder that `save` wrote.

  Returns:
    The detector, a function from images, [B, H, W, 3] of the size that the
    description says, to logits of being attacked; and the description.

  Raises:
    UserError: If there is no detector, or it is of another format version.
    DataError: If a file in it is broken or does not belong to it.
  """
  folder = Path(folder)
  path, weights = folder / 'detector.json', folder / 'variables.npz'
  if not path.is_file():
    raise UserError(
      f'there is no saved detector in {folder} (no detector.json); give a '
      'folder that `save` wrote; launch.py --save_detectors leaves them in '
      'WORKDIR/detectors/CELL/KIND'
    )
  found = read_json(path)
  version = found.get('format_version') if isinstance(found, dict) else None
  if version != FORMAT_VERSION:
    raise UserError(
      f'{path} has the format version {version}, but this jaxadv reads '
      f'{FORMAT_VERSION}; save the detector again with this jaxadv'
    )
  if not weights.is_file() or _sha256(weights) != found.get('sha256'):
    raise DataError(
      f'{weights} is missing, damaged or of another detector than '
      'detector.json beside it; copy the whole folder again'
    )
  try:
    about = About(**{name: found[name] for name in About._fields})
    # Every setting of the built network is then replaced by the saved one.
    module = models.build(about.backbone, num_classes=1).clone(
      **_as_tuples(found['module'])
    )
    design = Design(module, **_as_tuples(found['design']))
    preprocess = _preprocess(found['preprocess'])
    variables = native.read_variables(weights)
    prefix, detector = variables['prefix'], variables['detector']
  except (KeyError, TypeError) as error:
    raise DataError(
      f'{path} describes no detector ({error!r}); save it again'
    ) from error
  classifier = from_linen(module, prefix, preprocess=preprocess)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=detector['params'],
    batch_stats=detector.get('batch_stats', {}),
    opt_state=None,
    plateau=None,
  )
  detector = _of_size(design, about.image_size)
  return FittedDetector(detector, classifier, state), about


@functools.cache
def _of_size(design: Design, image_size: int) -> Detector:
  """Makes the one detector of a design, which takes pictures of one size."""
  detector = backbone_detector(design)

  def score(
    keys: Keys | None, classifier: Any, state: PyTree, images: Images
  ) -> Scores:
    if images.shape[1:] != (image_size, image_size, 3):
      raise UserError(
        f'the images have the shape {images.shape}, but this detector takes '
        f'[B, {image_size}, {image_size}, 3]; resize them with '
        'jaxadv.data.images.resize'
      )
    return detector.score(keys, classifier, state, images)

  return detector._replace(score=score)


def _settings(instance: Any, without: tuple[str, ...]) -> dict[str, Any]:
  return {
    field.name: getattr(instance, field.name)
    for field in dataclasses.fields(instance)
    if field.name not in without
  }


def _as_tuples(value: Any) -> Any:
  """Undoes what JSON makes of tuples."""
  if isinstance(value, dict):
    return {name: _as_tuples(item) for name, item in value.items()}
  if isinstance(value, list):
    return tuple(map(_as_tuples, value))
  return value


def _describe(
  preprocess: Callable[[jax.Array], jax.Array], backbone: str
) -> dict[str, Any]:
  """Says in plain values what a preprocessing does; `_preprocess` undoes it."""
  match preprocess:
    case Resized():
      then = _describe(preprocess.then, backbone)
      return {'resize': preprocess.size, 'then': then}
    case Normalise():
      return {'mean': preprocess.mean, 'std': preprocess.std}
  if preprocess is identity:
    return {}
  if preprocess is models.BACKBONES[backbone].preprocess:
    return {'published': backbone}
  raise UserError(
    f'a detector with the preprocessing {preprocess!r} cannot be saved; use '
    'Normalise, Resized or that of the backbone'
  )


def _preprocess(
  described: dict[str, Any],
) -> Callable[[jax.Array], jax.Array]:
  if 'resize' in described:
    return Resized(described['resize'], _preprocess(described['then']))
  if 'mean' in described:
    return Normalise(tuple(described['mean']), tuple(described['std']))
  if 'published' in described:
    return models.BACKBONES[described['published']].preprocess
  return identity


def _sha256(path: Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
