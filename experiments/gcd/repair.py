"""The rectifier of a run: its detector, its classifier, what it repairs.

A defence does not know the attack, so its detectors have learnt all of them.
The rectifier asks a detector for nothing but its gradient at the picture, so
that is taken once for all masking rates, readings and draws.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import detectors as common
from experiments.common.runner import ReportProgress
from experiments.gcd import detectors
from experiments.gcd.config import PAPER_NAME, Config
from experiments.gcd.pictures import RunInputs, retrained, stream
from jaxadv import storage
from jaxadv.attacks.adaptive import Score
from jaxadv.classifier import Classifier, predict
from jaxadv.data import sources
from jaxadv.data.batching import map_batches
from jaxadv.data.sources import Pictures
from jaxadv.defences import rectifier
from jaxadv.defences.rectifier import FINE_TUNING, MaskRule
from jaxadv.detectors.entropy_ensemble import (
  EnsembleState,
  entropy_ensemble,
  temperature,
)
from jaxadv.inputs import as_float
from jaxadv.reports import Table
from jaxadv.sets.types import AdversarialSet
from jaxadv.training import mesh
from jaxadv.types import Detector, picture_keys

KEPT = 'clean validation pictures kept (%)'
READINGS: tuple[MaskRule, ...] = ('threshold', 'fraction')
# Pictures at a time; few, so that little is wasted on filling the last batch.
ROWS = 50
# What decides which pixels are masked: the reading of alpha, and alpha.
Masking = tuple[MaskRule, float]
# Share of the clean validation pictures (%) that f_rec has to keep.
KEEPS = 95.0
# The control: fine-tuned on the same pictures, of which nothing is masked.
UNMASKED: Masking = ('fraction', 0.0)


class ScoreGradient(NamedTuple):
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
    detectors.detector_of(config, 'is'), detectors.detector_of(config, 'org')
  )


def pooled_score(inputs: RunInputs, name: str, seed: int) -> Score:
  """Gives a detector of all attacks of the run as `images -> logits`.

  Args:
    inputs: The inputs of the run.
    name: 'is', 'org', or 'ensemble' of both, calibrated.
    seed: Which of `num_seeds` trainings.

  Returns:
    A pytree: detectors of the same networks share their compiled programs.

  Raises:
    DataError: If no attack had success, so that there is nothing to learn.
  """
  config, classifier = inputs.config, inputs.victim.classifier

  learnt = functools.partial(detectors.learn_pooled, inputs, seed=seed)
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
def _logits_and_gradients(score, images):
  def total(images):
    logits = score(images)
    return jnp.sum(logits), logits

  gradient, logits = jax.grad(total, has_aux=True)(images)
  return logits, gradient


def logits_and_gradients(score: Score, images: np.ndarray) -> ScoreGradient:
  """Takes logits and gradients of a detector, for pictures of either form."""
  return ScoreGradient(
    *map_batches(
      functools.partial(_logits_and_gradients, score),
      as_float(images),
      batch_size=ROWS,
    )
  )


def _linear(gradient, images):
  return jnp.sum(gradient * images, axis=(1, 2, 3))


def standing_in(gradient: np.ndarray | jax.Array) -> Score:
  """Gives a score that has the given gradient wherever it is asked.

  For the rectifier it is the detector itself, at the pictures at which the
  gradient was taken.
  """
  return jax.tree_util.Partial(_linear, gradient)


def exact_images(inputs: RunInputs, attack: str) -> np.ndarray:
  """Gives attacked test pictures as they are before rounding: float32."""
  images = inputs.attacked[attack]['test'].images_float
  assert images is not None  # Those of the test pictures are kept.
  return images


def side_images(inputs: RunInputs, kind: str, side: str) -> np.ndarray:
  """Gives the pictures of a side, 'clean' or those of an attack: uint8."""
  found: Pictures | AdversarialSet = (
    inputs.clean[side] if kind == 'clean' else inputs.attacked[kind][side]
  )
  return found.images


def fine_tuned(
  inputs: RunInputs, alpha: float, mask_rule: MaskRule, score: Score, seed: int
) -> Classifier:
  """Fine-tunes the victim on masked pictures (f_rec), or finds it.

  The masked pictures are those that detectors learn from: every source
  picture is attacked by one of the attacks, which have equal shares. As many
  clean ones, not masked, are mixed in, all of them different as far as the
  training split has so many: a few, seen again and again, are what a network
  forgets the others by. Validation pictures pick the epoch.

  Args:
    inputs: The inputs of the run.
    alpha: The masking rate, in [0, 1].
    mask: Its reading.
    score: `pooled_score(study, 'ensemble', seed)`.
    seed: Which of `num_seeds` trainings.

  Returns:
    The classifier, for one rate and reading.
  """
  config, victim = inputs.config, inputs.victim
  trainable = common.trainable_attacks(inputs)
  trained_on, held = (
    jax.device_get(common.detector_batches(inputs, trainable, side).batch)
    for side in ('train', 'valid')
  )
  sources_of = np.flatnonzero(trained_on.kind != 0)
  if 0 < config.repair_pictures < len(sources_of):
    # Spread over the attacks, which follow each other.
    places = np.linspace(0, len(sources_of) - 1, config.repair_pictures)
    sources_of = sources_of[places.round().astype(int)]
  images, labels = trained_on.images[sources_of], trained_on.labels[sources_of]
  clean = clean_pictures(inputs, config.repair_copies * len(images))
  recipe = dataclasses.replace(
    FINE_TUNING,
    num_epochs=config.repair_epochs,
    learning_rate=config.repair_rate,
  )
  key_copies = stream(config, 'masked copies')
  key_tuning = stream(config, f'fine-tuning seed {seed}')
  made_from = {
    'detector': storage.fingerprint(jax.tree.leaves(score)),
    'module': detectors.module_of(config),
    'pictures': storage.fingerprint([images, labels]),
    'clean': clean.fingerprint,
    'held': storage.fingerprint(held),
    'keeps': KEEPS,
    'alpha': float(alpha),
    'mask': mask_rule,
    'copies': config.repair_copies,
    'recipe': recipe,
    'keys': [key_copies, key_tuning],
  }

  def masked(images: np.ndarray, num_copies: int) -> np.ndarray:
    gradient = _remembered(inputs, score, images).gradient
    parts = []
    for start in range(0, len(images), ROWS):
      rows = slice(start, start + ROWS)
      copies = rectifier.masked_copies(
        jax.random.fold_in(key_copies, start),
        standing_in(gradient[rows]),
        images[rows],
        alpha,
        mask_rule=mask_rule,
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
      mesh=mesh.all_devices(),
      checkpoint_dir=work,
    )

  return retrained(inputs, 'gcd_repair', made_from, fit)


def clean_pictures(inputs: RunInputs, count: int) -> Pictures:
  """Takes training pictures, but none on which anything is chosen."""
  free = ~np.isin(inputs.train.source, inputs.clean['valid'].source)
  return sources.subset(inputs.train, np.flatnonzero(free)[:count])


def kept(inputs: RunInputs, classifier: Classifier) -> float:
  """Measures the clean validation pictures that f_rec gets right, in per cent.

  They are not masked; the victim gets all of them right.
  """
  clean = inputs.clean['valid']
  logits = predict(classifier, clean.images, inputs.config.batch_size)
  return 100 * float(np.mean(logits.argmax(-1) == clean.labels))


def forgets(share: float) -> list[str]:
  """Says why f_rec cannot bear a claim, if it keeps too few clean pictures."""
  if share >= KEEPS:
    return []
  return [
    f'f_rec keeps {share:.1f} % of the clean validation pictures, {KEEPS:g} '
    'are needed'
  ]


def _remembered(
  inputs: RunInputs, score: Score, images: np.ndarray
) -> ScoreGradient:
  """`logits_and_gradients`, kept: every masking rate needs the same."""
  made_from = {
    'victim': inputs.victim.fingerprint,
    'detector': storage.fingerprint(jax.tree.leaves(score)),
    'module': detectors.module_of(inputs.config),
    'pictures': storage.fingerprint(images),
  }

  def make(folder, work):
    del work
    storage.write_npz(
      folder / 'seen.npz', **logits_and_gradients(score, images)._asdict()
    )

  version = storage.code_version(__name__)
  folder = inputs.cache.get_or_make('gcd_seen', version, made_from, make)
  return ScoreGradient(**storage.read_npz(folder / 'seen.npz'))


@functools.partial(jax.jit, static_argnames=('mask_rule', 'num_draws'))
def _repair(classifier, alpha, keys, images, gradient, *, mask_rule, num_draws):
  score = standing_in(gradient)
  judge = rectifier.rectified(
    classifier,
    score,
    alpha,
    mask_rule=mask_rule,
    num_draws=num_draws,
    combine='vote',
  )
  found = rectifier.salient_pixels(score, images, alpha, mask_rule=mask_rule)
  masked = rectifier.mask_pixels(keys, images, found)
  labels = judge(images, keys).argmax(-1)
  return labels, rectifier.share(found), rectifier.share(masked.replaced)


def repaired(
  inputs: RunInputs,
  images: np.ndarray,
  source: np.ndarray,
  seen: ScoreGradient,
  setting: Masking,
  classifier: Classifier,
) -> Repaired:
  """Sends pictures through the rectifier, all of them.

  Args:
    inputs: The inputs of the run.
    images: [N, H, W, C], uint8, or float32 in [0, 1].
    source: int[N], their ids: the draws of a picture go by it.
    seen: What the ensemble made of them.
    setting: Reading and masking rate.
    classifier: `fine_tuned` for them.

  Returns:
    The vote of `config.num_draws` draws, and the realised fractions.
  """
  mask_rule, alpha = setting
  repair = functools.partial(
    _repair,
    classifier,
    alpha,
    mask_rule=mask_rule,
    num_draws=inputs.config.num_draws,
  )
  keys = picture_keys(stream(inputs.config, 'rectifier'), jnp.asarray(source))
  # Of one type, so that rounded and exact pictures share a program.
  return Repaired(
    *map_batches(repair, keys, as_float(images), seen.gradient, batch_size=ROWS)
  )


def valid_hits(
  inputs: RunInputs,
  attack: str,
  score: Score,
  classifiers: Mapping[Masking, Classifier],
  report_progress: ReportProgress,
) -> dict[Masking, np.ndarray]:
  """Tells which attacked validation pictures each setting recovers, bool[V]."""
  report_progress(f'masking rates on validation {PAPER_NAME[attack]}', 0.0)
  clean, images = inputs.clean['valid'], side_images(inputs, attack, 'valid')
  seen = logits_and_gradients(score, images)
  return {
    setting: clean.labels
    == repaired(inputs, images, clean.source, seen, setting, classifier).labels
    for setting, classifier in classifiers.items()
  }


def settings(alphas: Sequence[str]) -> list[Masking]:
  """Lists both readings of every masking rate."""
  return [
    (mask_rule, float(alpha)) for mask_rule in READINGS for alpha in alphas
  ]


def all_fine_tuned(
  inputs: RunInputs, score: Score, seed: int, report_progress: ReportProgress
) -> dict[Masking, Classifier]:
  """Fine-tunes a classifier for every setting of the run, or finds them.

  The last one is that of `UNMASKED`.
  """
  found = {}
  for mask_rule, alpha in (*settings(inputs.config.alphas), UNMASKED):
    report_progress(f'fine-tuning for {named((mask_rule, alpha))}', 0.0)
    found[mask_rule, alpha] = fine_tuned(inputs, alpha, mask_rule, score, seed)
  return found


def named(setting: Masking) -> str:
  """Names a setting as arrays of results do."""
  mask_rule, alpha = setting
  return f'{mask_rule}/{alpha:g}'


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
