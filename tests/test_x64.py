"""All that learns or scores, under 64-bit JAX: nearly the same numbers.

Under it JAX makes arrays of 64 bits where none are asked for, and draws other
random numbers if their type is not.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import models
from jaxadv.attacks import fgsm
from jaxadv.classifier import Resized, from_function, from_linen, identity
from jaxadv.defences import rectifier
from jaxadv.defences.adversarial_training import attacked_batches
from jaxadv.defences.pixel_defend import pixel_defend
from jaxadv.defences.total_variance import total_variance
from jaxadv.detectors.backbone import Design
from jaxadv.detectors.baselines import (
  confidence_detector,
  log_sensitivity_detector,
)
from jaxadv.detectors.density import density_detector
from jaxadv.detectors.entropy_ensemble import entropy_ensemble
from jaxadv.detectors.input_sensitivity import input_sensitivity_detector
from jaxadv.detectors.mahalanobis import mahalanobis_detector
from jaxadv.detectors.network import network_detector
from jaxadv.detectors.pixels import pixel_detector
from jaxadv.detectors.saliency import saliency_detector
from jaxadv.detectors.tws import tws_detector
from jaxadv.identifiers.backbone import backbone_identifier
from jaxadv.models.pixelcnn import PixelCNN
from jaxadv.saliency.gradcam import gradcam
from jaxadv.training import (
  TrainConfig,
  classification,
  fit,
  gather_images,
  linen_apply,
)
from jaxadv.training.augment import flip_and_shift
from jaxadv.training.classifiers import fit_classifier
from jaxadv.types import Batch, picture_keys
from jaxadv.units import to_uint8
from tests.detectors import cases

RNG = np.random.default_rng(0)
SIDE = 16
WEIGHTS = RNG.normal(size=(SIDE * SIDE * 3, 4))
KEYS = jax.random.split(jax.random.key(3), 6)
IMAGES = RNG.uniform(size=(6, SIDE, SIDE, 3)).astype(np.float32)


class Flat(nn.Module):
  """A linear network."""

  num_classes: int = 2

  @nn.compact
  def __call__(self, x, train=False):
    return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


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
  """Every second picture is darker and counts as attacked."""
  images = RNG.uniform(size=(num, SIDE, SIDE, 3)).astype(np.float32)
  index = np.arange(num, dtype=np.int32)
  images[index % 2 == 1] *= 0.5
  return Batch(images, index % 4, index % 2, index // 2, np.ones(num, bool))


TRAIN, VALID = pool(), pool()


def detect(detector):
  def run(classifier):
    state = detector.fit(jax.random.key(0), classifier, [TRAIN], [VALID])
    found = [detector.score(KEYS, classifier, state, IMAGES)]
    if detector.surrogate is not None:
      found.append(detector.surrogate(KEYS, classifier, state, IMAGES))
    return found

  return run


def purify(purifier):
  def run(classifier):
    state = purifier.fit(jax.random.key(0), classifier, [TRAIN], [VALID])
    return purifier.purify(KEYS, classifier, state, IMAGES)

  return run


def guard(mask, combine):
  """Flagged pictures of the rectifier, and the mask of all."""

  def run(classifier):
    score = lambda images: classifier(images)[:, 0]
    repaired = rectifier.rectified(
      classifier, score, 0.4, mask_rule=mask, num_draws=2, combine=combine
    )
    everywhere = jnp.ones(IMAGES.shape[:3], bool)
    return (
      rectifier.guarded(classifier, repaired, score)(IMAGES, KEYS),
      rectifier.mask_pixels(KEYS, IMAGES, everywhere),
      rectifier.random_pixels(KEYS, IMAGES, 0.3),
    )

  return run


class Normalised(nn.Module):
  """With BatchNorm, whose statistics are carried along."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.BatchNorm(use_running_average=not train)(x)
    return nn.Dense(4)(x.reshape(len(x), -1))


def task():
  net = Normalised()
  return classification(
    lambda key, data, member: net.init(key, IMAGES),
    linen_apply(net),
    gather_images(),
  )._replace(selection_metric=lambda found: -found['loss'].mean())


def train(schedule, optimizer='adam'):
  def run(classifier):
    del classifier
    data = {'images': to_uint8(TRAIN.images), 'labels': TRAIN.labels}
    rows = np.arange(40)
    config = TrainConfig(
      num_epochs=2,
      batch_size=32,
      learning_rate=0.02,
      schedule=schedule,
      optimizer=optimizer,
    )
    return fit(
      jax.random.key(0), task(), data, rows[:30], rows[30:], config
    ).history

  return run


def train_adversarially(classifier):
  del classifier
  variables = fit_classifier(
    jax.random.key(0),
    Flat(),
    to_uint8(TRAIN.images),
    TRAIN.kind,
    TrainConfig(num_epochs=2, batch_size=20, schedule='cosine'),
    preprocess=identity,
    flip=True,
    perturb=attacked_batches(fgsm(0.1), max_norm=0.5),
  )
  return jax.tree.leaves(variables)


def explain(classifier):
  labels = jnp.arange(6, dtype=jnp.int32) % 4
  return gradcam(lambda images: images**2, classifier, IMAGES, labels)


def augment(classifier):
  del classifier
  return flip_and_shift(2)(jax.random.key(5), to_uint8(IMAGES))


def identify(classifier):
  module = models.build('vgg11', num_classes=2, width=0.02, image_size=16)
  variables = models.init_variables(jax.random.key(1), module, 16)
  dtype = jax.tree.leaves(classifier.variables)[0].dtype
  backbone = from_linen(
    module,
    jax.tree.map(lambda leaf: leaf.astype(dtype), variables),
    preprocess=Resized(16, identity),
  )
  design = Design(module, 'block1', 'block2', hidden=(4,))
  unit = backbone_identifier(design, (1,), ONCE)
  state = unit.fit(jax.random.key(0), backbone, [TRAIN], [VALID])
  return unit.identify(None, backbone, state, IMAGES)


EXPONENTIAL = 'exponential:decay_rate=0.999'
ONCE = TrainConfig(num_epochs=1, batch_size=20, schedule=EXPONENTIAL)
SMALL = PixelCNN(num_filters=3, num_blocks=0, num_mixtures=2, dropout=0.0)
TWS = tws_detector(0.1, 1e-2, 1.0, targeted_cap=4, untargeted_cap=4)

UNITS: dict[str, Callable[..., Any]] = {
  'tws': detect(TWS),
  'log_sensitivity': detect(log_sensitivity_detector(beta=None)),
  'confidence': detect(confidence_detector()),
  'mahalanobis': detect(
    mahalanobis_detector(('pixels',), magnitudes=(0.0, 0.001))
  ),
  'input_sensitivity': detect(input_sensitivity_detector(Flat(1), ONCE)),
  'log_scaling': detect(
    input_sensitivity_detector(Flat(1), ONCE, scaling='log')
  ),
  'entropy_ensemble': detect(
    entropy_ensemble(
      saliency_detector(Flat(1), ONCE), pixel_detector(Flat(1), ONCE)
    )
  ),
  'network': detect(network_detector(width=0.02, image_size=16, config=ONCE)),
  'density': detect(density_detector(SMALL, ONCE)),
  'identifier': identify,
  'pixel_defend': purify(pixel_defend(SMALL, 4, ONCE)),
  'tvm_printed': purify(total_variance(num_steps=3)),
  'tvm_released': purify(total_variance(num_steps=3, objective='released')),
  'rectifier_mean': guard('threshold', 'mean'),
  'rectifier_vote': guard('fraction', 'vote'),
  'plateau': train('reduce_on_plateau'),
  'cosine': train('cosine'),
  'exponential': train(EXPONENTIAL, 'sgd:momentum=0.9'),
  'adversarial_training': train_adversarially,
  'gradcam': explain,
  'augmentation': augment,
}


@functools.cache
def in_32_bits(name):
  with jax.enable_x64(False):
    return jax.tree.map(np.asarray, UNITS[name](linear(WEIGHTS)))


# Their numbers follow long chains of roundings, or one at an edge.
LOOSE = {'network': 2e-2, 'identifier': 2e-2, 'adversarial_training': 1e-2}


# What compiles in a moment; the others run with the slow tests.
FAST = ('confidence', 'gradcam', 'augmentation')


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize(
  'name',
  [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in UNITS
  ],
)
def test_64_bits_change_roundings_only(name, dtype):
  with jax.enable_x64(True):
    found = UNITS[name](linear(WEIGHTS.astype(dtype)))
    found = jax.tree.map(np.asarray, found)
  wanted = in_32_bits(name)
  chex.assert_trees_all_equal_dtypes(found, wanted)
  tolerance = LOOSE.get(name, 1e-3)
  chex.assert_trees_all_close(found, wanted, rtol=tolerance, atol=tolerance)


def scores_of(case, dtype):
  classifier = jax.tree.map(
    lambda leaf: jnp.asarray(np.asarray(leaf), dtype), case.classifier
  )
  train, valid = (
    cases.batches(cases.pictures(seed, num, cases.STRONG), 32)
    for seed, num in ((0, 96), (1, 32))
  )
  state = case.detector.fit(jax.random.key(0), classifier, train, valid)
  images = cases.pictures(5, 12, cases.STRONG).images
  keys = picture_keys(jax.random.key(2), jnp.arange(12))
  return np.asarray(case.detector.score(keys, classifier, state, images))


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('case', cases.CASES, ids=lambda case: case.name)
def test_64_bits_change_no_detector_of_the_table(case, dtype):
  with jax.enable_x64(True):
    found = scores_of(case, dtype)
  wanted = scores_of(case, np.float32)
  assert found.dtype == np.float32
  # Six epochs on a few pictures multiply roundings.
  assert np.corrcoef(found, wanted)[0, 1] > 0.98
