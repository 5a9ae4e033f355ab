"""Detectors of a run: fitted on training pictures, kept in the cache, scored.

`per_attack` tests a detector on the attack that it has learnt, as Table 2 of
the paper reads; `pooled` has learnt all attacks; `leave_one_out` all but the
one it is tested on, which is what awaits it once deployed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gcd.protocol import study as studies
from experiments.gcd.protocol.setting import Config
from experiments.gcd.protocol.study import Study
from jaxadv import models, storage
from jaxadv.classifier import Classifier
from jaxadv.detectors.baselines import (
  confidence_detector,
  log_sensitivity_detector,
)
from jaxadv.detectors.entropy_ensemble import RULES, temperature
from jaxadv.detectors.feature_network import FeatureState, Scale
from jaxadv.detectors.input_sensitivity import input_sensitivity_detector
from jaxadv.detectors.pixels import pixel_detector
from jaxadv.detectors.saliency import saliency_detector
from jaxadv.inputs import as_float
from jaxadv.metrics import roc
from jaxadv.models.names import parse_network
from jaxadv.models.weights import native
from jaxadv.training import TrainConfig
from jaxadv.types import Detector, picture_keys

REGIMES = ('per_attack', 'pooled', 'leave_one_out')
# Detectors of one network; what each looks at.
NETWORKS = ('org', 'sal', 'is')
CALLED = {'is': 'DET_IS', 'org': 'DET_org', 'ensemble': 'the ensemble'}
# AUC of a pooled detector (%) below which nothing that rests on it is tested.
ENOUGH_AUC = 90.0


class Learnt(NamedTuple):
  """A network detector that has learnt.

  Attributes:
    detector: The detector.
    state: What its `score` takes.
    valid: float32[V], its logits on the validation pictures.
    valid_attacked: bool[V], which of them are attacked.
    scores: {'clean' | attack: float32[N]}, its logits on the test pictures
      that it was asked for.
  """

  detector: Detector
  state: FeatureState
  valid: np.ndarray
  valid_attacked: np.ndarray
  scores: dict[str, np.ndarray]


def lessons(config: Config, regime: str) -> dict[str, tuple[str, ...]]:
  """Says what a detector learns that is tested on an attack: {tested: taught}.

  Args:
    config: The config of the run.
    regime: One of `REGIMES`.
  """
  every = config.attacks
  return {
    attack: {
      'per_attack': (attack,),
      'pooled': every,
      'leave_one_out': tuple(a for a in every if a != attack),
    }[regime]
    for attack in every
  }


@functools.cache
def module_of(config: Config) -> Any:
  """Builds the network of the detectors, with one logit."""
  name, width, _ = parse_network(config.detector)
  size = parse_network(config.detector).size_for(config.image_size)
  return models.build(
    name,
    num_classes=1,
    width=width,
    image_size=size,
    **models.BACKBONES[name].from_scratch,
  )


@functools.cache
def detector_of(config: Config, name: str) -> Detector:
  """Builds a network detector; one object a config, so that it compiles once.

  Args:
    config: The config of the run.
    name: One of `NETWORKS`.
  """
  make = {
    'org': pixel_detector,
    'sal': saliency_detector,
    'is': input_sensitivity_detector,
  }[name]
  return make(module_of(config), recipe(config), mesh=studies.mesh())


def recipe(config: Config) -> TrainConfig:
  """Gives the training of network detectors."""
  return TrainConfig(
    num_epochs=config.detector_epochs,
    batch_size=config.detector_batch,
    learning_rate=config.detector_rate,
    schedule='constant',
  )


def learn(
  study: Study,
  name: str,
  taught: Sequence[str],
  tested: Sequence[str],
  seed: int,
) -> Learnt:
  """Fits a network detector and scores test pictures, or finds both.

  Args:
    study: The study.
    name: One of `NETWORKS`.
    taught: Attacks to learn, which `study.can_teach`.
    tested: Attacks to be tested on; clean pictures are always tested.
    seed: Which of `num_seeds` trainings.

  Returns:
    What it learnt.
  """
  config = study.config
  train, valid = (
    studies.detector_batches(study, taught, s) for s in ('train', 'valid')
  )
  detector = detector_of(config, name)
  key = studies.stream(
    config, f'detector {name} {" ".join(taught)} seed {seed}'
  )
  made_from = {
    'detector': name,
    'module': module_of(config),
    'recipe': recipe(config),
    'victim': study.victim.identity,
    'taught': {a: studies.attack_settings(config, a) for a in taught},
    'train': storage.fingerprint(train.batch),
    'valid': storage.fingerprint(valid.batch),
    'key': key,
  }

  def make(folder, work):
    del work  # A minute of work at most: nothing to resume.
    state = detector.fit(key, study.victim.classifier, train, valid)
    native.write_variables(
      folder / 'state.npz',
      {'scale': state.scale._asdict(), 'variables': state.variables},
    )

  version = storage.code_version(__name__)
  folder = study.cache.get_or_make('gcd_detector', version, made_from, make)
  found = native.read_variables(folder / 'state.npz', _template(study, name))
  state = FeatureState(Scale(**found['scale']), found['variables'])

  def make_scores(folder, work):
    del work
    score = functools.partial(
      score_pictures, detector, study.victim.classifier, state
    )
    storage.write_npz(
      folder / 'scores.npz',
      valid=score(np.asarray(valid.batch.images)),
      **{kind: score(test_images(study, kind)) for kind in ('clean', *tested)},
    )

  asked = made_from | {
    'tested': {
      kind: storage.fingerprint(test_images(study, kind))
      for kind in ('clean', *tested)
    }
  }
  folder = study.cache.get_or_make('gcd_scores', version, asked, make_scores)
  scores = storage.read_npz(folder / 'scores.npz')
  return Learnt(
    detector,
    state,
    scores.pop('valid'),
    np.asarray(valid.batch.kind) != 0,
    scores,
  )


def learn_pooled(study: Study, name: str, seed: int) -> Learnt:
  """Fits a network detector on all attacks, as a defence has it; see `learn`.

  Raises:
    DataError: If no attack had success, so that there is nothing to learn.
  """
  taught = studies.teachable(study)
  return learn(study, name, taught, study.config.attacks, seed)


def pooled_auc(study: Study, name: str) -> float:
  """Measures pooled detectors on validation pictures, mean over trainings.

  Args:
    study: The study.
    name: One of `NETWORKS`, or 'ensemble' of gradients and pixels.

  Returns:
    The AUC in per cent, flattered: epochs and temperatures were chosen there.
  """
  found = []
  for seed in range(study.config.num_seeds):
    members = ('is', 'org') if name == 'ensemble' else (name,)
    each = [learn_pooled(study, member, seed) for member in members]
    logits: list[Any] = [
      d.valid / temperature(d.valid, d.valid_attacked) for d in each
    ]
    score = RULES['entropy'](*logits) if len(logits) > 1 else logits[0]
    found.append(roc.auc(np.asarray(score), each[0].valid_attacked))
  return 100 * float(np.mean(found))


def too_weak(study: Study, name: str) -> list[str]:
  """Says why pooled detectors cannot bear a claim, if they cannot."""
  area = pooled_auc(study, name)
  if area >= ENOUGH_AUC:
    return []
  return [
    f'{CALLED[name]}, taught all attacks, has an AUC of {area:.1f} % on '
    f'validation pictures, {ENOUGH_AUC:g} are needed'
  ]


def _template(study: Study, name: str) -> Any:
  """Gives the shapes of a detector's state."""
  channels = study.train.images.shape[-1] * (2 if name == 'sal' else 1)
  size = study.config.image_size
  scale = jax.ShapeDtypeStruct((channels,), jnp.float32)
  variables = jax.eval_shape(
    module_of(study.config).init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32),
  )
  return {'scale': {'shift': scale, 'factor': scale}, 'variables': variables}


def test_images(study: Study, kind: str) -> np.ndarray:
  """Gives the test pictures of a kind, 'clean' or an attack: uint8."""
  if kind == 'clean':
    return study.clean['test'].images
  return study.attacked[kind]['test'].images


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
  n, score, found = len(images), _score(detector), []
  for start in range(0, n, studies.BATCH):
    # Of one size; the last batch is filled from the start.
    rows = np.arange(start, start + min(studies.BATCH, n)) % n
    keys = None if key is None else picture_keys(key, jnp.asarray(rows))
    part = as_float(images[rows])
    found.append(np.asarray(score(keys, classifier, state, part)))
  return np.concatenate(found)[:n]


@functools.cache
def _score(detector: Detector):
  return jax.jit(detector.score)


TRIVIAL = {
  'confidence': confidence_detector(),
  'log_s': log_sensitivity_detector(),
}


def trivial_scores(study: Study, name: str, kinds: Sequence[str]):
  """Scores test pictures without training: {kind: float32[N]}.

  Args:
    study: The study.
    name: 'confidence', 1 - max probability, or 'log_s', log S.
    kinds: 'clean' or attacks.
  """
  return {
    kind: score_pictures(
      TRIVIAL[name], study.victim.classifier, (), test_images(study, kind)
    )
    for kind in kinds
  }
