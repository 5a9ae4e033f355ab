"""All that learns or scores, under 64-bit JAX: nearly the same numbers.

Under it JAX makes arrays of 64 bits where none are asked for, and draws other
random numbers if their type is not.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.classifier import from_function
from jaxadv.data.pipeline import batches
from jaxadv.defences import rectifier
from jaxadv.defences.pixel_defend import pixel_defend
from jaxadv.defences.total_variance import total_variance
from jaxadv.detectors.baselines import (
  confidence_detector,
  log_sensitivity_detector,
)
from jaxadv.detectors.density import density_detector
from jaxadv.detectors.mahalanobis import mahalanobis
from jaxadv.detectors.network import network_detector
from jaxadv.detectors.tws import tune, tws
from jaxadv.models.pixelcnn import PixelCNN
from jaxadv.perturbations.noise import filter_noise
from jaxadv.saliency.gradcam import gradcam
from jaxadv.training import TrainConfig, fit
from jaxadv.training.augment import flip_and_shift, random_flip
from jaxadv.types import Batch, picture_keys
from tests.training import nets

RNG = np.random.default_rng(0)
SIDE = 8
WEIGHTS = RNG.normal(size=(SIDE * SIDE * 3, 4))
KEYS = jax.random.split(jax.random.key(3), 6)
IMAGES = RNG.uniform(size=(6, SIDE, SIDE, 3)).astype(np.float32)


def linear(weights):
  """A classifier of these weights, with one named layer, the picture."""

  def flat(images):
    return images.reshape(len(images), -1)

  return from_function(
    lambda weights, images: flat(images) @ weights,
    jnp.asarray(weights),
    feature_map=lambda weights, images, names: dict.fromkeys(names, images),
  )


def pool(num=40):
  images = RNG.uniform(size=(num, SIDE, SIDE, 3)).astype(np.float32)
  index = np.arange(num, dtype=np.int32)
  kind = index % 2
  images[kind == 1] *= 0.5
  return Batch(images, index % 4, kind, index // 2, np.ones(num, bool))


TRAIN, VALID = pool(), pool()


def detect(detector):
  def run(classifier):
    state = detector.fit(jax.random.key(0), classifier, [TRAIN], [VALID])
    score = jax.jit(lambda *a: detector.score(KEYS, *a))
    found = [score(classifier, state, IMAGES)]
    if detector.surrogate is not None:
      found.append(detector.surrogate(KEYS, classifier, state, IMAGES))
    return found

  return run


def purify(purifier):
  def run(classifier):
    state = purifier.fit(jax.random.key(0), classifier, [TRAIN], [VALID])
    return purifier.purify(KEYS, classifier, state, IMAGES)

  return run


def rectified(mask, combine):
  def run(classifier):
    score = lambda images: classifier(images)[:, 0]
    repaired = rectifier.rectified(
      classifier, score, 0.4, mask=mask, num_draws=2, combine=combine
    )
    guarded = rectifier.guarded(classifier, repaired, score)
    return guarded(IMAGES, KEYS)

  return run


def train(schedule):
  def run(classifier):
    del classifier
    data = nets.make_data()
    data['labels'] = data['labels'][:1]
    config = TrainConfig(
      num_epochs=2, batch_size=16, learning_rate=0.02, schedule=schedule
    )
    task = nets.TASK._replace(judge=lambda found: -found['loss'].mean())
    result = fit(
      jax.random.key(0), task, data, nets.TRAIN, nets.VALID, config
    )
    return result.history

  return run


SMALL = PixelCNN(num_filters=3, num_blocks=0, num_mixtures=2, dropout=0.0)
ONCE = TrainConfig(num_epochs=1, batch_size=8, schedule='exponential')
EVERY = rectifier.Masked(IMAGES, IMAGES[..., 0] > -1).replaced

UNITS: dict[str, Callable] = {
  'tws': detect(tws(0.1, 1e-2, targeted_cap=4, untargeted_cap=4)),
  'log_sensitivity': detect(log_sensitivity_detector(beta=None)),
  'confidence': detect(confidence_detector()),
  'mahalanobis': detect(mahalanobis(('pixels',), magnitudes=(0.001,))),
}
