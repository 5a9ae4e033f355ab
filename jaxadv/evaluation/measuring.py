"""What is measured of a classifier: one attack, or the checks, at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.attacks.checks import check
from jaxadv.attacks.evaluate import Evaluation, evaluate, evaluate_over
from jaxadv.attacks.inputs import attack_inputs, try_classifier
from jaxadv.errors import DataError
from jaxadv.evaluation.named import NORMS, NamedAttack
from jaxadv.inputs import as_float
from jaxadv.runs import stream
from jaxadv.storage import (
  fingerprint,
  read_json,
  read_npz,
  write_json,
  write_npz,
)
from jaxadv.training import mesh
from jaxadv.types import bound, picture_keys

# Pictures of every attack in the report.
NUM_EXAMPLES = 3
# Pictures that the checks look at; some hundreds are enough.
NUM_CHECKED = 200
# On a CPU a picture that is done makes room in one of these slots; an
# accelerator is faster with whole batches.
NUM_SLOTS = 32


class Subject(NamedTuple):
  """A classifier with the pictures that it is measured on.

  Attributes:
    classifier: From pictures in [0, 1] to logits, a pytree.
    images: [N, H, W, C], uint8 or float32 in [0, 1].
    labels: int32[N].
    source: int32[N], ids of the pictures.
    class_names: One a class.
    name: What it is, for the report.
    fingerprints: Hashes of data and weights.
  """

  classifier: Any
  images: np.ndarray
  labels: np.ndarray
  source: np.ndarray
  class_names: tuple[str, ...]
  name: str
  fingerprints: Mapping[str, str]


class Outcome(NamedTuple):
  """An attack on all pictures: at E epsilons, or E = 1 without a budget.

  Attributes:
    correct: bool[N], whether the clean picture is classified correctly.
    success: bool[E, N], judged on the pictures as the attack returned them.
    success_uint8: bool[E, N], after rounding to 8 bit.
    linf: float64[E, N], largest change of a channel in image units.
    l2: float64[E, N], Euclidean norm of the change in image units.
    l1: float64[E, N], sum of the changes of all channels in image units.
    clean: [M, H, W, C], the first M pictures that are classified correctly.
    attacked: uint8[M, H, W, C], the same attacked, at the largest epsilon.
    truth: int[M], their classes.
    predicted: int[M], what the attacked ones are taken for.
  """

  correct: np.ndarray
  success: np.ndarray
  success_uint8: np.ndarray
  linf: np.ndarray
  l2: np.ndarray
  l1: np.ndarray
  clean: np.ndarray
  attacked: np.ndarray
  truth: np.ndarray
  predicted: np.ndarray

  def distance(self, norm: str) -> np.ndarray:
    """Gives each picture's smallest successful change, float64[N].

    Infinite where there is none.
    """
    sizes = np.where(self.success, getattr(self, norm), np.inf)
    return sizes.min(axis=0)


class Work(NamedTuple):
  """What to measure with, and how.

  Attributes:
    attacks: The attacks.
    norm: One of `NORMS`.
    radii: Radii in image units by what was written, in rising order.
    checks: Whether to look for signs that attacks fail for the wrong reason.
    seed: Seed of all draws.
    batch_size: Pictures at a time.
  """

  attacks: tuple[NamedAttack, ...]
  norm: str
  radii: Mapping[str, float]
  checks: bool
  seed: int
  batch_size: int

  @property
  def epsilons(self) -> list[float]:
    """The radii, in rising order."""
    return list(self.radii.values())

  @property
  def key(self) -> jax.Array:
    """One key for all cells, so that random classifiers are judged alike."""
    return stream(self.seed, 'verify')


def run_attack(
  work: Work,
  subject: Subject,
  attack: NamedAttack,
  path: Path,
  progress: Callable[[int, int], None],
) -> Outcome:
  """Runs an attack over all pictures and epsilons, or reads what is kept.

  Args:
    work: How to measure.
    subject: What to attack.
    attack: The attack.
    path: File that keeps the outcome; what is finished of it lies beside.
    progress: `(done, total) -> None`.

  Returns:
    The outcome.

  Raises:
    UserError: If the classifier's outputs are random and it does not say so.
    DataError: If a logit is NaN, or memory or disk are full.
  """
  if path.exists():
    try:
      return Outcome(**read_npz(path))
    except TypeError as error:
      raise DataError(
        f'{path} does not hold the result of an attack'
      ) from error
  unfinished = path.with_suffix('.partial')
  options: dict[str, Any] = dict(
    batch_size=_batch_size(work, subject),
    num_slots=NUM_SLOTS if jax.default_backend() == 'cpu' else None,
    mesh=mesh.all_devices(),
    progress=progress,
    resume_dir=unfinished,
  )
  given = (
    work.key,
    subject.classifier,
    subject.images,
    subject.labels,
    subject.source,
  )
  if attack.has_budget:
    found = evaluate_over(attack.build, work.epsilons, *given, **options)
  else:
    found = [evaluate(attack.build(0.0), *given, **options)]
  outcome = _outcome(subject, found)
  write_npz(path, **outcome._asdict())
  shutil.rmtree(unfinished, ignore_errors=True)
  return outcome


def run_checks(work: Work, subject: Subject, path: Path) -> dict[str, Any]:
  """Looks for signs that attacks fail for the wrong reason, or reads them.

  Its PGD is measured at every radius of the run, and at larger ones; what is
  tried without gradients at the largest radius of the run.

  Args:
    work: How to measure.
    subject: What to look at; the first pictures of it.
    path: File that keeps the result.

  Returns:
    {'warnings': [(name, sentence)], 'numbers': {name: number}, 'curve':
    [(radius, success rate of PGD)], 'n': pictures}.
  """
  if not path.exists():
    images = subject.images[:NUM_CHECKED]
    report = check(
      work.key,
      subject.classifier,
      images,
      subject.labels[:NUM_CHECKED],
      norm=work.norm,
      epsilon=max(work.epsilons),
      epsilons=work.epsilons,
      batch_size=work.batch_size,
    )
    found = {
      'warnings': report.warnings,
      'numbers': report.numbers,
      'curve': list(report.curve.items()),
      'n': len(images),
    }
    write_json(path, found)
  return read_json(path)


def doubts_about(work: Work, subject: Subject) -> list[tuple[str, str]]:
  """Says what makes a classifier doubtful, where it is not checked.

  Args:
    work: How to measure.
    subject: What to look at.

  Returns:
    (name, sentence) of each doubt, of which the checks know, too.
  """
  inputs = attack_inputs(subject.images, subject.labels, subject.source)
  return list(try_classifier(subject.classifier, work.key, inputs).items())


def logits_of(classifier: Any, images: Any) -> jax.Array:
  """Computes logits; those of a random classifier with fixed draws.

  Args:
    classifier: A pytree.
    images: [B, H, W, C], uint8 or float32 in [0, 1].
  """
  keys = picture_keys(jax.random.key(0), jnp.arange(len(images)))
  return bound(classifier, keys, 0)(as_float(images))


def identity(classifier: Any, images: np.ndarray) -> str:
  """Hashes what a classifier computes: its program and its weights.

  Args:
    classifier: A pytree.
    images: [N, H, W, C], pictures that it takes.
  """
  program = jax.jit(logits_of).lower(classifier, images[:2]).as_text()
  return fingerprint([program, jax.tree.leaves(classifier)])


def _batch_size(work: Work, subject: Subject) -> int:
  """Fits the batch to the pictures and the devices."""
  devices = jax.device_count()
  most = min(work.batch_size, len(subject.labels))
  # At least two rows a device: a lone one is rounded differently.
  return max(-(-most // devices), 2) * devices


def _outcome(subject: Subject, found: Sequence[Evaluation]) -> Outcome:
  correct = found[0].correct
  rows = np.flatnonzero(correct)[:NUM_EXAMPLES]
  attacked = found[-1].images_uint8[rows]
  predicted = np.zeros(0, int)
  if rows.size:  # A classifier need not know what to do with no picture.
    logits = jax.jit(logits_of)(subject.classifier, attacked)
    predicted = np.argmax(logits, axis=-1)
  return Outcome(
    correct=correct,
    success=np.stack([each.success for each in found]),
    success_uint8=np.stack([each.success_uint8 for each in found]),
    **{
      norm: np.stack([getattr(each, norm) for each in found]) for norm in NORMS
    },
    clean=subject.images[rows],
    attacked=attacked,
    truth=subject.labels[rows],
    predicted=predicted,
  )
