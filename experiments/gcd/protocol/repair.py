"""The rectifier of a run: its detector, its classifier, what it repairs.

A defence does not know the attack, so its detectors have learnt all of them.
The rectifier asks a detector for nothing but its gradient at the picture, so
that is taken once for all masking rates, readings and draws.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gcd.protocol import detection
from experiments.gcd.protocol import study as studies
from experiments.gcd.protocol.setting import PAPER_NAME, Config
from experiments.gcd.protocol.study import Attacked, Note, Study
from jaxadv import storage
from jaxadv.attacks.adaptive import Score
from jaxadv.classifier import Classifier, predict
from jaxadv.data import sources
from jaxadv.data.sources import Pictures
from jaxadv.defences import rectifier
from jaxadv.defences.rectifier import FINE_TUNING, Reading
from jaxadv.detectors.entropy_ensemble import (
  EnsembleState,
  entropy_ensemble,
  temperature,
)
from jaxadv.inputs import as_float
from jaxadv.reports import Table
from jaxadv.types import Detector, picture_keys

KEPT = 'clean validation pictures kept (%)'
READINGS: tuple[Reading, ...] = ('threshold', 'fraction')
# Pictures at a time; few, so that little is wasted on filling the last batch.
ROWS = 50
# What decides which pixels are masked: the reading of alpha, and alpha.
Setting = tuple[Reading, float]
# Share of the clean validation pictures (%) that f_rec has to keep.
KEEPS = 95.0
# The control: fine-tuned on the same pictures, of which nothing is masked.
UNMASKED: Setting = ('fraction', 0.0)


class Seen(NamedTuple):
  """What a detector makes of pictures.

  Attributes:
    logits: float32[N], positive where it flags a picture.
    gradient: float32[N, H, W, C], of the logit with respect to the picture.
  """

  logits: np.ndarray
  gradient: np.ndarray


class Repaired(NamedTuple):
  """Pictures behind the rectifier, as if all of them had been flagged.

  Attributes:
    labels: int[N], the class that most draws vote for.
    suspect: float32[N], share of the pixels that are suspect.
    replaced: float32[N], share of the pixels that one draw replaces.
  """

  labels: np.ndarray
  suspect: np.ndarray
  replaced: np.ndarray


@functools.cache
def ensemble_of(config: Config) -> Detector:
  """Builds the ensemble; one object a config, so that it compiles once."""
  return entropy_ensemble(
    detection.detector_of(config, 'is'), detection.detector_of(config, 'org')
  )


def pooled_score(study: Study, name: str, seed: int) -> Score:
  """Gives a detector of all attacks of the run as `images -> logits`.

  Args:
    study: The study.
    name: 'is', 'org', or 'ensemble' of both, calibrated.
    seed: Which of `num_seeds` trainings.

  Returns:
    A pytree: detectors of the same networks share their compiled programs.

  Raises:
    DataError: If no attack had success, so that there is nothing to learn.
  """
  config, classifier = study.config, study.victim.classifier

  learnt = functools.partial(detection.learn_pooled, study, seed=seed)
  if name != 'ensemble':
    found = learnt(name)
    return jax.tree_util.Partial(
      found.detector.score, None, classifier, found.state
    )
  both = [learnt(name) for name in ('is', 'org')]
  temperatures = [temperature(d.valid, d.valid_attacked) for d in both]
  state = EnsembleState(
    (both[0].state, both[1].state), jnp.asarray(temperatures, jnp.float32)
  )
  return jax.tree_util.Partial(
    ensemble_of(config).score, None, classifier, state
  )


@jax.jit
def _look(score, images):
  def total(images):
    logits = score(images)
    return jnp.sum(logits), logits

  gradient, logits = jax.grad(total, has_aux=True)(images)
  return logits, gradient


def look(score: Score, images: np.ndarray) -> Seen:
  """Takes logits and gradients of a detector, for pictures of either form."""
  return Seen(*in_batches(functools.partial(_look, score), as_float(images)))


def in_batches(function: Callable[..., Any], *columns: Any) -> Any:
  """Calls a function of rows, `ROWS` at a time, and joins what it gives.

  The last batch is filled with rows from the start, so that a compiled
  function meets one shape.

  Args:
    function: Of arrays with the leading axis of rows; gives a pytree of such.
    *columns: Arrays of N rows.

  Returns:
    The joined pytree of NumPy arrays of N rows.
  """
  n, parts = len(columns[0]), []
  for start in range(0, n, ROWS):
    rows = np.arange(start, start + ROWS) % n
    parts.append(jax.device_get(function(*(part[rows] for part in columns))))
  return jax.tree.map(lambda *part: np.concatenate(part)[:n], *parts)


def _linear(gradient, images):
  return jnp.sum(gradient * images, axis=(1, 2, 3))


def standing_in(gradient: np.ndarray | jax.Array) -> Score:
  """Gives a score that has the given gradient wherever it is asked.

  For the rectifier it is the detector itself, at the pictures at which the
  gradient was taken.
  """
  return jax.tree_util.Partial(_linear, gradient)


def exact_images(study: Study, attack: str) -> np.ndarray:
  """Gives attacked test pictures as they are before rounding: float32."""
  images = study.attacked[attack]['test'].images_float
  assert images is not None  # Those of the test pictures are kept.
  return images


def side_images(study: Study, kind: str, side: str) -> np.ndarray:
  """Gives the pictures of a side, 'clean' or those of an attack: uint8."""
  found: Pictures | Attacked = (
    study.clean[side] if kind == 'clean' else study.attacked[kind][side]
  )
  return found.images


def fine_tuned(
  study: Study, alpha: float, mask: Reading, score: Score, seed: int
) -> Classifier:
  """Fine-tunes the victim on masked pictures (f_rec), or finds it.

  The masked pictures are those that detectors learn from: every source
  picture is attacked by one of the attacks, which have equal shares. As many
  clean ones, not masked, are mixed in, all of them different as far as the
  training split has so many: a few, seen again and again, are what a network
  forgets the others by. Validation pictures pick the epoch.

  Args:
    study: The study.
    alpha: The masking rate, in [0, 1].
    mask: Its reading.
    score: `pooled_score(study, 'ensemble', seed)`.
    seed: Which of `num_seeds` trainings.

  Returns:
    The classifier, for one rate and reading.
  """
  config, victim = study.config, study.victim
  teachable = studies.teachable(study)
  taught, held = (
    jax.device_get(studies.detector_batches(study, teachable, side).batch)
    for side in ('train', 'valid')
  )
  sources_of = np.flatnonzero(taught.kind != 0)
  if 0 < config.repair_pictures < len(sources_of):
    # Spread over the attacks, which follow each other.
    places = np.linspace(0, len(sources_of) - 1, config.repair_pictures)
    sources_of = sources_of[places.round().astype(int)]
  images, labels = taught.images[sources_of], taught.labels[sources_of]
  clean = clean_pictures(study, config.repair_copies * len(images))
  recipe = dataclasses.replace(
    FINE_TUNING,
    num_epochs=config.repair_epochs,
    learning_rate=config.repair_rate,
  )
  key_copies = studies.stream(config, 'masked copies')
  key_tuning = studies.stream(config, f'fine-tuning seed {seed}')
  made_from = {
    'detector': storage.fingerprint(jax.tree.leaves(score)),
    'module': detection.module_of(config),
    'pictures': storage.fingerprint([images, labels]),
    'clean': clean.fingerprint,
    'held': storage.fingerprint(held),
    'keeps': KEEPS,
    'alpha': float(alpha),
    'mask': mask,
    'copies': config.repair_copies,
    'recipe': recipe,
    'keys': [key_copies, key_tuning],
  }

  def masked(images: np.ndarray, num_copies: int) -> np.ndarray:
    gradient = _remembered(study, score, images).gradient
    parts = []
    for start in range(0, len(images), ROWS):
      rows = slice(start, start + ROWS)
      copies = rectifier.masked_copies(
        jax.random.fold_in(key_copies, start),
        standing_in(gradient[rows]),
        images[rows],
        alpha,
        mask=mask,
        num_copies=num_copies,
      )
      parts.append(copies.images)
    return np.concatenate(parts, axis=1)

  def fit(work):
    attacked = held.kind != 0
    return rectifier.fine_tune(
      key_tuning,
      victim.module,
      victim.classifier.variables,
      masked(images, config.repair_copies),
      labels,
      clean.images,
      clean.labels,
      recipe,
      held=rectifier.Held(
        masked(held.images[attacked], 1)[0],
        held.labels[attacked],
        held.images[~attacked],
        held.labels[~attacked],
        KEEPS / 100,
      ),
      preprocess=victim.classifier.preprocess,
      mesh=studies.mesh(),
      checkpoint_dir=work,
    )

  return studies.retrained(study, 'gcd_repair', made_from, fit)


def clean_pictures(study: Study, count: int) -> Pictures:
  """Takes training pictures, but none on which anything is chosen."""
  free = ~np.isin(study.train.source, study.clean['valid'].source)
  return sources.subset(study.train, np.flatnonzero(free)[:count])


def kept(study: Study, classifier: Classifier) -> float:
  """Measures the clean validation pictures that f_rec gets right, in per cent.

  They are not masked; the victim gets all of them right.
  """
  clean = study.clean['valid']
  logits = predict(classifier, clean.images, study.config.batch_size)
  return 100 * float(np.mean(logits.argmax(-1) == clean.labels))


def forgets(share: float) -> list[str]:
  """Says why f_rec cannot bear a claim, if it keeps too few clean pictures."""
  if share >= KEEPS:
    return []
  return [
    f'f_rec keeps {share:.1f} % of the clean validation pictures, {KEEPS:g} '
    'are needed'
  ]


def _remembered(study: Study, score: Score, images: np.ndarray) -> Seen:
  """`look`, kept: every masking rate needs the same."""
  made_from = {
    'victim': study.victim.identity,
    'detector': storage.fingerprint(jax.tree.leaves(score)),
    'module': detection.module_of(study.config),
    'pictures': storage.fingerprint(images),
  }

  def make(folder, work):
    del work
    storage.write_npz(folder / 'seen.npz', **look(score, images)._asdict())

  version = storage.code_version(__name__)
  folder = study.cache.get_or_make('gcd_seen', version, made_from, make)
  return Seen(**storage.read_npz(folder / 'seen.npz'))


@functools.partial(jax.jit, static_argnames=('mask', 'num_draws'))
def _repair(classifier, alpha, keys, images, gradient, *, mask, num_draws):
  score = standing_in(gradient)
  judge = rectifier.rectified(
    classifier, score, alpha, mask=mask, num_draws=num_draws, combine='vote'
  )
  found = rectifier.suspects(score, images, alpha, mask=mask)
  masked = rectifier.mask_pixels(keys, images, found)
  labels = judge(images, keys).argmax(-1)
  return labels, rectifier.share(found), rectifier.share(masked.replaced)


def repaired(
  study: Study,
  images: np.ndarray,
  source: np.ndarray,
  seen: Seen,
  setting: Setting,
  classifier: Classifier,
) -> Repaired:
  """Sends pictures through the rectifier, all of them.

  Args:
    study: The study.
    images: [N, H, W, C], uint8, or float32 in [0, 1].
    source: int[N], their ids: the draws of a picture go by it.
    seen: What the ensemble made of them.
    setting: Reading and masking rate.
    classifier: `fine_tuned` for them.

  Returns:
    The vote of `config.num_draws` draws, and the realised fractions.
  """
  mask, alpha = setting
  repair = functools.partial(
    _repair,
    classifier,
    alpha,
    mask=mask,
    num_draws=study.config.num_draws,
  )
  keys = picture_keys(
    studies.stream(study.config, 'rectifier'), jnp.asarray(source)
  )
  # Of one type, so that rounded and exact pictures share a program.
  return Repaired(*in_batches(repair, keys, as_float(images), seen.gradient))


def valid_hits(
  study: Study,
  attack: str,
  score: Score,
  classifiers: Mapping[Setting, Classifier],
  note: Note,
) -> dict[Setting, np.ndarray]:
  """Tells which attacked validation pictures each setting recovers, bool[V]."""
  note(f'masking rates on validation {PAPER_NAME[attack]}', 0.0)
  clean, images = study.clean['valid'], side_images(study, attack, 'valid')
  seen = look(score, images)
  return {
    setting: clean.labels
    == repaired(study, images, clean.source, seen, setting, classifier).labels
    for setting, classifier in classifiers.items()
  }


def settings(alphas: Sequence[str]) -> list[Setting]:
  """Lists both readings of every masking rate."""
  return [(mask, float(alpha)) for mask in READINGS for alpha in alphas]


def all_fine_tuned(
  study: Study, score: Score, seed: int, note: Note
) -> dict[Setting, Classifier]:
  """Fine-tunes a classifier for every setting of the run, or finds them.

  The last one is that of `UNMASKED`.
  """
  found = {}
  for mask, alpha in (*settings(study.config.alphas), UNMASKED):
    note(f'fine-tuning for {named((mask, alpha))}', 0.0)
    found[mask, alpha] = fine_tuned(study, alpha, mask, score, seed)
  return found


def named(setting: Setting) -> str:
  """Names a setting as arrays of results do."""
  mask, alpha = setting
  return f'{mask}/{alpha:g}'


def kept_table(note: str) -> Table:
  """Lays out the clean validation pictures that f_rec keeps.

  Args:
    note: How the sentence under it ends.
  """
  return Table(
    'Clean validation pictures that f_rec keeps',
    KEPT,
    ('reading',),
    'alpha',
    filters={'role': 'kept'},
    note=f'Not masked, mean over the trainings; {note}',
  )


def coloured(image: np.ndarray) -> np.ndarray:
  """Gives a picture three channels."""
  return np.broadcast_to(image, (*image.shape[:2], 3))


def marked(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
  """Paints pixels red: uint8[H, W, C] and bool[H, W] to uint8[H, W, 3]."""
  return np.where(
    pixels[..., None], np.array([213, 30, 0], np.uint8), coloured(image)
  )
