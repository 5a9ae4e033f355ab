"""Network detectors: fitted on training pictures, kept in the cache, scored."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import detectors as common
from experiments.gcd.config import Config
from experiments.gcd.pictures import RunInputs, stream
from jaxadv import models, storage
from jaxadv.detectors.baselines import (
  confidence_detector,
  log_sensitivity_detector,
)
from jaxadv.detectors.entropy_ensemble import RULES, temperature
from jaxadv.detectors.feature_network import FeatureState, Scale
from jaxadv.detectors.input_sensitivity import input_sensitivity_detector
from jaxadv.detectors.pixels import pixel_detector
from jaxadv.detectors.saliency import saliency_detector
from jaxadv.metrics import roc
from jaxadv.models.names import parse_network
from jaxadv.models.weights import native
from jaxadv.training import TrainConfig, mesh
from jaxadv.types import Detector

# Detectors of one network; what each looks at.
NETWORKS = ('org', 'sal', 'is')
CALLED = {'is': 'DET_IS', 'org': 'DET_org', 'ensemble': 'the ensemble'}
# AUC of a pooled detector (%) below which nothing that rests on it is tested.
ENOUGH_AUC = 90.0


class FittedNetwork(NamedTuple):
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
  return make(module_of(config), recipe(config), mesh=mesh.all_devices())


def recipe(config: Config) -> TrainConfig:
  """Gives the training of network detectors."""
  return TrainConfig(
    num_epochs=config.detector_epochs,
    batch_size=config.detector_batch,
    learning_rate=config.detector_rate,
    schedule='constant',
  )


def learn(
  inputs: RunInputs,
  name: str,
  trained_on: Sequence[str],
  tested: Sequence[str],
  seed: int,
) -> FittedNetwork:
  """Fits a network detector and scores test pictures, or finds both.

  Args:
    inputs: The inputs of the run.
    name: One of `NETWORKS`.
    taught: Attacks to learn, which `study.can_teach`.
    tested: Attacks to be tested on; clean pictures are always tested.
    seed: Which of `num_seeds` trainings.

  Returns:
    What it learnt.
  """
  config = inputs.config
  train, valid = (
    common.detector_batches(inputs, trained_on, s) for s in ('train', 'valid')
  )
  detector = detector_of(config, name)
  key = stream(config, f'detector {name} {" ".join(trained_on)} seed {seed}')
  made_from = {
    'detector': name,
    'module': module_of(config),
    'recipe': recipe(config),
    'victim': inputs.victim.fingerprint,
    'taught': {a: config.attack_settings(a) for a in trained_on},
    'train': storage.fingerprint(train.batch),
    'valid': storage.fingerprint(valid.batch),
    'key': key,
  }

  def make(folder, work):
    del work  # A minute of work at most: nothing to resume.
    state = detector.fit(key, inputs.victim.classifier, train, valid)
    native.write_variables(
      folder / 'state.npz',
      {'scale': state.scale._asdict(), 'variables': state.variables},
    )

  version = storage.code_version(__name__)
  folder = inputs.cache.get_or_make('gcd_detector', version, made_from, make)
  found = native.read_variables(folder / 'state.npz', _template(inputs, name))
  state = FeatureState(Scale(**found['scale']), found['variables'])

  def make_scores(folder, work):
    del work
    score = functools.partial(
      common.score_pictures, detector, inputs.victim.classifier, state
    )
    storage.write_npz(
      folder / 'scores.npz',
      valid=score(np.asarray(valid.batch.images)),
      **{
        kind: score(common.test_images(inputs, kind))
        for kind in ('clean', *tested)
      },
    )

  asked = made_from | {
    'tested': {
      kind: storage.fingerprint(common.test_images(inputs, kind))
      for kind in ('clean', *tested)
    }
  }
  folder = inputs.cache.get_or_make('gcd_scores', version, asked, make_scores)
  scores = storage.read_npz(folder / 'scores.npz')
  return FittedNetwork(
    detector,
    state,
    scores.pop('valid'),
    np.asarray(valid.batch.kind) != 0,
    scores,
  )


def learn_pooled(inputs: RunInputs, name: str, seed: int) -> FittedNetwork:
  """Fits a network detector on all attacks, as a defence has it; see `learn`.

  Raises:
    DataError: If no attack had success, so that there is nothing to learn.
  """
  trained_on = common.trainable_attacks(inputs)
  return learn(inputs, name, trained_on, inputs.config.attack_names, seed)


def pooled_auc(inputs: RunInputs, name: str) -> float:
  """Measures pooled detectors on validation pictures, mean over trainings.

  Args:
    inputs: The inputs of the run.
    name: One of `NETWORKS`, or 'ensemble' of gradients and pixels.

  Returns:
    The AUC in per cent, flattered: epochs and temperatures were chosen there.
  """
  found = []
  for seed in range(inputs.config.num_seeds):
    members = ('is', 'org') if name == 'ensemble' else (name,)
    each = [learn_pooled(inputs, member, seed) for member in members]
    logits: list[Any] = [
      d.valid / temperature(d.valid, d.valid_attacked) for d in each
    ]
    score = RULES['entropy'](*logits) if len(logits) > 1 else logits[0]
    found.append(roc.auc(np.asarray(score), each[0].valid_attacked))
  return 100 * float(np.mean(found))


def too_weak(inputs: RunInputs, name: str) -> list[str]:
  """Says why pooled detectors cannot bear a claim, if they cannot."""
  area = pooled_auc(inputs, name)
  if area >= ENOUGH_AUC:
    return []
  return [
    f'{CALLED[name]}, taught all attacks, has an AUC of {area:.1f} % on '
    f'validation pictures, {ENOUGH_AUC:g} are needed'
  ]


def _template(inputs: RunInputs, name: str) -> Any:
  """Gives the shapes of a detector's state."""
  channels = inputs.train.images.shape[-1] * (2 if name == 'sal' else 1)
  size = inputs.config.image_size
  scale = jax.ShapeDtypeStruct((channels,), jnp.float32)
  variables = jax.eval_shape(
    module_of(inputs.config).init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32),
  )
  return {'scale': {'shift': scale, 'factor': scale}, 'variables': variables}


TRIVIAL = {
  'confidence': confidence_detector(),
  'log_s': log_sensitivity_detector(),
}


def trivial_scores(inputs: RunInputs, name: str, kinds: Sequence[str]):
  """Scores test pictures without training: {kind: float32[N]}.

  Args:
    inputs: The inputs of the run.
    name: 'confidence', 1 - max probability, or 'log_s', log S.
    kinds: 'clean' or attacks.
  """
  return {
    kind: common.score_pictures(
      TRIVIAL[name],
      inputs.victim.classifier,
      (),
      common.test_images(inputs, kind),
    )
    for kind in kinds
  }
