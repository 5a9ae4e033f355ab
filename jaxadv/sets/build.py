"""Makes adversarial sets by attacking a victim."""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxadv.attacks.drive import Composite
from jaxadv.attacks.evaluate import Progress, evaluate
from jaxadv.classifier import Classifier, predict
from jaxadv.data.pipeline import check_fields
from jaxadv.data.sources import Pictures, subset
from jaxadv.errors import UserError
from jaxadv.sets.types import (
  AdversarialSet,
  check_kind,
  versions,
  weights_fingerprint,
)
from jaxadv.storage import as_plain
from jaxadv.types import Attack


def correct_pictures(
  classifier: Classifier,
  pictures: Pictures,
  n: int | None = None,
  *,
  batch_size: int = 128,
) -> Pictures:
  """Keeps the pictures that a victim classifies correctly.

  Args:
    classifier: The victim.
    pictures: Clean pictures.
    n: How many to keep, the first ones; None keeps all.
    batch_size: Rows of a batch; no result depends on it.

  Returns:
    `Pictures` with their source ids.

  Raises:
    UserError: If the victim classifies fewer than `n` correctly, or the
      pictures are an array.
  """
  check_fields(pictures, Pictures._fields)
  rows = np.flatnonzero(
    predict(classifier, pictures.images, batch_size).argmax(-1)
    == pictures.labels
  )
  if n is not None and len(rows) < n:
    raise UserError(
      f'the victim classifies {len(rows)} of {len(pictures.labels)} pictures '
      f'correctly but {n} are wanted; give more pictures or a smaller n'
    )
  return subset(pictures, rows[:n])


def build(
  attack: Attack | Composite,
  key: jax.Array,
  classifier: Classifier,
  pictures: Pictures,
  *,
  kind: str,
  settings: dict[str, Any],
  targets: np.ndarray | None = None,
  batch_size: int = 128,
  num_slots: int | None = None,
  mesh: Mesh | None = None,
  progress: Progress | bool = False,
  resume_dir: str | os.PathLike[str] | None = None,
) -> AdversarialSet:
  """Attacks every picture and rounds what comes out to 8 bit.

  Args:
    attack: Any attack.
    key: One key; each picture has its own by its source id.
    classifier: The victim.
    pictures: Clean pictures, those of `correct_pictures`: of others the
      attack gives the clean picture back and calls it a success.
    kind: A word that names it, such as 'pgd'.
    settings: Name and hyperparameters of the attack, for the provenance; see
      `as_plain`.
    targets: int32[N], the classes to reach, of a targeted attack.
    batch_size: As in `evaluate`.
    num_slots: As in `evaluate`.
    mesh: As in `evaluate`.
    progress: As in `evaluate`.
    resume_dir: As in `evaluate`.

  Returns:
    An `AdversarialSet` with a row for each picture, successful or not, with
    the sizes of changes and the pictures before rounding.

  Raises:
    UserError: If the kind is no word, or the pictures are an array, or as
      `evaluate`.
    DataError: As `evaluate`.
  """
  check_fields(pictures, Pictures._fields)
  check_kind(kind)
  found = evaluate(
    attack,
    key,
    classifier,
    pictures.images,
    pictures.labels,
    pictures.source,
    targets=targets,
    batch_size=batch_size,
    num_slots=num_slots,
    mesh=mesh,
    progress=progress,
    resume_dir=resume_dir,
  )
  return AdversarialSet(
    images=found.images_uint8,
    labels=pictures.labels,
    source=pictures.source,
    success_float=found.success,
    success=found.success_uint8,
    kind=kind,
    class_names=pictures.class_names,
    provenance={
      'attack': as_plain(settings),
      'key': jax.random.key_data(key).tolist(),
      'victim': weights_fingerprint(classifier.variables),
      'data': pictures.fingerprint,
      'data_name': pictures.name,
      'versions': versions(),
    },
    l2=found.l2,
    linf=found.linf,
    images_float=found.images,
  )
