"""What detectors learn from and how they score, whatever the paper.

`per_attack` tests a detector on the attack that it has learnt; `pooled` has
learnt all attacks; `leave_one_out` all but the one it is tested on, which is
what awaits it once deployed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.attacks import registry
from jaxadv.classifier import Classifier
from jaxadv.data import pipeline
from jaxadv.data.batching import map_batches
from jaxadv.data.sources import Pictures
from jaxadv.errors import DataError
from jaxadv.inputs import as_float
from jaxadv.sets.types import AdversarialSet
from jaxadv.types import Batch, Detector, picture_keys

REGIMES = ('per_attack', 'pooled', 'leave_one_out')
# Rows of every batch that detectors read.
BATCH = 100


class AttackedInputs(Protocol):
  """What a run has of clean and attacked pictures."""

  @property
  def clean(self) -> Mapping[str, Pictures]:
    """{side: clean pictures}, of 'train', 'valid' and 'test'."""

  @property
  def attacked(self) -> Mapping[str, Mapping[str, AdversarialSet]]:
    """{attack: {side: attacked versions of the side's pictures}}."""


def is_minimal(attack: str) -> bool:
  """Tells whether an attack looks for the smallest change, by its name."""
  name, _ = registry.read(attack)
  return not registry.has_budget(name)


def training_attacks(
  attacks: Sequence[str], regime: str
) -> dict[str, tuple[str, ...]]:
  """Says what a detector learns that is tested on an attack.

  Args:
    attacks: Names of all attacks of the run.
    regime: One of `REGIMES`.

  Returns:
    {tested on: trained on}.
  """
  every = tuple(attacks)
  return {
    attack: {
      'per_attack': (attack,),
      'pooled': every,
      'leave_one_out': tuple(a for a in every if a != attack),
    }[regime]
    for attack in every
  }


def training_rows(inputs: AttackedInputs, attack: str, side: str) -> np.ndarray:
  """Picks the attacked pictures that a detector learns from, int[n].

  Those of a budget attack are all attacked, whether the victim errs or not. A
  minimal-norm attack without success leaves the clean picture, so others
  stand in; as many as there are clean pictures, so that nothing compiles
  twice and both classes weigh the same, but none if the attack never had
  success.
  """
  success = inputs.attacked[attack][side].success_float
  if not is_minimal(attack):
    return np.arange(len(success))
  wanted = len(inputs.clean[side].labels) if success.any() else 0
  return np.resize(np.flatnonzero(success), wanted)


def is_trainable(inputs: AttackedInputs, attacks: Sequence[str]) -> bool:
  """Tells whether each of the attacks has attacked pictures to learn from."""
  return all(
    len(training_rows(inputs, attack, side))
    for attack in attacks
    for side in ('train', 'valid')
  )


def trainable_attacks(inputs: AttackedInputs) -> tuple[str, ...]:
  """Lists the attacks of the run that detectors can learn.

  Raises:
    DataError: If there is none.
  """
  found = tuple(a for a in inputs.attacked if is_trainable(inputs, [a]))
  if not found:
    raise DataError(
      'no attack had success on the training pictures, so detectors have '
      'nothing to learn; give another --attacks'
    )
  return found


def detector_batches(
  inputs: AttackedInputs, attacks: Sequence[str], side: str
) -> pipeline.Batches:
  """Gives what a detector learns from: clean pictures and as many attacked.

  Args:
    inputs: The inputs of the run.
    attacks: Attacks to learn, which are `is_trainable`; of several each gives
      an equal share, every source picture being attacked by one of them.
    side: 'train' or 'valid'.

  Returns:
    Batches of fixed size.
  """
  parts = [pipeline.stored(inputs.clean[side])]
  for number, attack in enumerate(attacks):
    rows = training_rows(inputs, attack, side)[number :: len(attacks)]
    parts.append(attacked_batch(inputs, attack, side, rows))
  return pipeline.batches(pipeline.concatenate(parts), BATCH)


def attacked_batch(
  inputs: AttackedInputs, attack: str, side: str, rows: np.ndarray
) -> Batch:
  """Gives attacked pictures in the form in which sets are stored."""
  clean = pipeline.select(pipeline.stored(inputs.clean[side]), rows)
  columns: dict[str, Any] = {
    'images': inputs.attacked[attack][side].images[rows],
    'kind': np.full(
      len(rows), 1 + list(inputs.attacked).index(attack), np.int32
    ),
  }
  return clean._replace(**columns)


def test_images(inputs: AttackedInputs, kind: str) -> np.ndarray:
  """Gives the test pictures of a kind, 'clean' or an attack: uint8."""
  if kind == 'clean':
    return inputs.clean['test'].images
  return inputs.attacked[kind]['test'].images


def score_pictures(
  detector: Detector,
  classifier: Classifier,
  state: Any,
  images: np.ndarray,
  key: jax.Array | None = None,
) -> np.ndarray:
  """Scores pictures, uint8[N, H, W, C] or float32 in [0, 1], to float32[N].

  Args:
    detector: Any detector.
    classifier: The victim.
    state: What the detector learnt.
    images: The pictures; the n-th has the n-th key, whatever it shows.
    key: Of a detector whose scores are random.
  """
  keys = None if key is None else picture_keys(key, jnp.arange(len(images)))
  score = _score(detector)
  return map_batches(
    lambda keys, images: score(keys, classifier, state, as_float(images)),
    keys,
    images,
    batch_size=min(BATCH, len(images)),
  )


@functools.cache
def _score(detector: Detector):
  return jax.jit(detector.score)
