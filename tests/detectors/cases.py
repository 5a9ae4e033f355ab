"""The detectors under test, and a toy on which all of them can be judged.

A new detector earns the tests of `test_properties.py` by a row in `CASES`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import models
from jaxadv.classifier import Classifier, from_function, from_linen
from jaxadv.detectors.backbone import Design, backbone_detector
from jaxadv.detectors.baselines import (
  confidence_detector,
  log_sensitivity_detector,
)
from jaxadv.detectors.entropy_ensemble import entropy_ensemble
from jaxadv.detectors.input_sensitivity import input_sensitivity_detector
from jaxadv.detectors.pixels import pixel_detector
from jaxadv.detectors.saliency import saliency_detector
from jaxadv.detectors.tws import tws_detector
from jaxadv.models.layers import Conv
from jaxadv.models.weights import native
from jaxadv.training import TrainConfig
from jaxadv.types import Batch, Detector, PyTree

SIZE = 16
# How strong the grid of an attacked picture is; 0 leaves none.
STRONG, NONE = 0.5, 0.0
RECIPE = TrainConfig(num_epochs=6, batch_size=16, learning_rate=1e-3)
# Of one convolution.
FAST = TrainConfig(
  num_epochs=8, batch_size=16, learning_rate=1e-2, schedule='constant'
)


class Case(NamedTuple):
  """A row of the table.

  Attributes:
    name: Shown by pytest.
    detector: What is tested.
    classifier: What `fit` and `score` are given.
    save: `(path, state)`, writes what a fitted detector needs.
    restore: `(path, state)`, reads it back; of the state it is given only
      structure, shapes and dtypes count.
    draws: Whether what is fitted depends on the key.
  """

  name: str
  detector: Detector
  classifier: Classifier
  save: Callable[..., None]
  restore: Callable[..., PyTree]
  draws: bool = True


def network():
  """A very narrow VGG11 for 16x16 pictures: its module and a classifier."""
  module = models.build(
    'vgg11',
    num_classes=2,
    width=1 / 16,
    image_size=SIZE,
    batch_norm=True,
  )
  variables = models.init_variables(jax.random.key(1), module, SIZE)
  return module, from_linen(module, variables)


def design(module, **options) -> Design:
  return Design(module, 'block3', 'block5', **options)


def _save_training(path, state):
  native.write_variables(path, state.variables)


def _restore_training(path, state):
  return state._replace(**native.read_variables(path, state.variables))


def _save_tree(path, state):
  np.savez(path, *jax.tree.leaves(state))


def _restore_tree(path, state):
  with np.load(path) as found:
    leaves = [jnp.asarray(found[name]) for name in found]
  return jax.tree.unflatten(jax.tree.structure(state), leaves)


def plain(name: str, detector: Detector, **options) -> Case:
  """A row for a detector whose state is any pytree of arrays."""
  return Case(
    name, detector, near_boundary(), _save_tree, _restore_tree, **options
  )


@functools.cache
def near_boundary() -> Classifier:
  """Sure of clean pictures; those with a strong grid lie on its boundary."""
  grid = (np.indices((SIZE, SIZE)).sum(0) % 2 - 0.5)[..., None]

  def logits(grid, images):
    strength = 4 * jnp.mean(images * grid, axis=(1, 2, 3)) / STRONG
    return jnp.stack([8 - 8 * strength, 0 * strength], axis=-1)

  return from_function(logits, grid.astype(np.float32))


class Small(nn.Module):
  """One convolution with BatchNorm, pooling, one logit."""

  @nn.compact
  def __call__(self, x, train=False):
    x = Conv(8, (3, 3), strides=(2, 2), use_bias=False)(x)
    x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x)
    return nn.Dense(1)(jnp.mean(nn.relu(x), axis=(1, 2)))


def _backbone(name: str, **options) -> Case:
  module, classifier = network()
  return Case(
    name,
    backbone_detector(design(module, **options), RECIPE),
    classifier,
    _save_training,
    _restore_training,
  )


CASES = [
  _backbone('backbone'),
  _backbone('backbone_frozen_batch_norm', batch_norm=False),
  plain('pixels', pixel_detector(Small(), FAST)),
  plain('input_sensitivity', input_sensitivity_detector(Small(), FAST)),
  plain('saliency', saliency_detector(Small(), FAST)),
  plain(
    'entropy_ensemble',
    entropy_ensemble(
      input_sensitivity_detector(Small(), FAST), pixel_detector(Small(), FAST)
    ),
  ),
  plain('tws', tws_detector(0.1, targeted_cap=0, untargeted_cap=0)),
  plain('log_sensitivity', log_sensitivity_detector(), draws=False),
  plain('confidence', confidence_detector(), draws=False),
]


def pictures(seed: int, num: int, strength: float) -> Batch:
  """Noise; every second picture with a faint grid on it and of kind 2."""
  rng = np.random.default_rng(seed)
  images = rng.uniform(0.3, 0.7, (num, SIZE, SIZE, 3)).astype(np.float32)
  kind = 2 * (np.arange(num) % 2)
  grid = np.indices((SIZE, SIZE)).sum(0) % 2 - 0.5
  images += strength * (kind / 2)[:, None, None, None] * grid[..., None]
  return Batch(
    images=images,
    labels=np.zeros(num, np.int32),
    kind=kind.astype(np.int32),
    source=np.arange(num, dtype=np.int32),
    mask=np.ones(num, bool),
  )


def batches(batch: Batch, size: int) -> list[Batch]:
  """Cuts a batch up."""
  return [
    Batch(*(leaf[start : start + size] for leaf in batch))
    for start in range(0, len(batch.mask), size)
  ]
