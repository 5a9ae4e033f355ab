"""Attacked pictures of a run, kept in the cache as adversarial sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.common.networks import Network
from jaxadv.attacks.drive import Composite
from jaxadv.data.sources import Pictures, pictures_from_arrays
from jaxadv.sets.build import build
from jaxadv.sets.io import read, write
from jaxadv.sets.types import AdversarialSet, select
from jaxadv.storage import Cache, code_version
from jaxadv.training import mesh
from jaxadv.types import Attack

# Slots that a finished picture makes room in; helps attacks that end early.
NUM_SLOTS = 32


def attacked_sets(
  cache: Cache,
  attack: Attack | Composite,
  key: jax.Array,
  victim: Network,
  sides: Mapping[str, Pictures],
  *,
  kind: str,
  settings: dict[str, Any],
  targets: Mapping[str, np.ndarray] | None = None,
  exact: tuple[str, ...] = (),
  ends_early: bool = False,
  batch_size: int,
) -> dict[str, AdversarialSet]:
  """Attacks pictures of several sides in one go, or finds them in the cache.

  Args:
    cache: Keeps the sets.
    attack: The attack.
    key: One key; each picture has its own by its source id.
    victim: The network under attack, which is right on the clean pictures.
    sides: {side: clean pictures}, such as those to train and to test on.
    kind: Names the attack, see `AdversarialSet`.
    settings: Name and hyperparameters of the attack.
    targets: {side: int32[n]}, classes to reach, of a targeted attack.
    exact: Sides of which pictures before rounding are kept, too.
    ends_early: Whether many pictures are done long before the last one.
    batch_size: Pictures at a time; no result depends on it.

  Returns:
    {side: set}, rows as in `sides`.
  """
  columns = zip(
    *((p.images, p.labels, p.source) for p in sides.values()), strict=True
  )
  images, labels, source = map(np.concatenate, columns)
  first = next(iter(sides.values()))
  joined = pictures_from_arrays(
    images,
    labels,
    class_names=first.class_names,
    name=first.name,
    source=source,
  )
  goals = (
    None
    if targets is None
    else np.concatenate([targets[side] for side in sides])
  )
  made_from = {
    'kind': kind,
    'settings': settings,
    'victim': victim.fingerprint,
    'pictures': {side: own.fingerprint for side, own in sides.items()},
    # Draws of a picture go by its id, which the set holds too.
    'source': source,
    'targets': goals,
    'exact': exact,
    'key': key,
  }

  def make(folder, work):
    found = build(
      attack,
      key,
      victim.classifier,
      joined,
      kind=kind,
      settings=settings,
      targets=goals,
      batch_size=batch_size,
      num_slots=NUM_SLOTS if ends_early else None,
      mesh=mesh.all_devices(),
      resume_dir=work,
    )
    ends = np.cumsum([len(own.labels) for own in sides.values()])[:-1]
    rows = np.split(np.arange(len(labels)), ends)
    for side, own in zip(sides, rows, strict=True):
      part = select(found, own)
      if side not in exact:
        part = part._replace(images_float=None)
      write(part, folder / side)

  version = code_version(__name__)
  folder = cache.get_or_make('adversarial_sets', version, made_from, make)
  return {side: read(folder / side) for side in sides}


def clean_set(kind: str, pictures: Pictures) -> AdversarialSet:
  """Gives pictures that nobody attacked the form of the others."""
  no = np.zeros(len(pictures.labels), bool)
  return AdversarialSet(
    images=pictures.images,
    labels=pictures.labels,
    source=pictures.source,
    success_float=no,
    success=no,
    kind=kind,
    class_names=pictures.class_names,
    provenance={'data': pictures.fingerprint},
  )
