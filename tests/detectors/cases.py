"""The detectors under test, and a toy on which all of them can be judged.

A new detector earns the tests of `test_properties.py` by a row in `CASES`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxadv import models
from jaxadv.classifier import Classifier, from_linen
from jaxadv.detectors.backbone import Design, backbone_detector
from jaxadv.models.weights import native
from jaxadv.training import TrainConfig
from jaxadv.types import Batch, Detector, PyTree

SIZE = 16
# How strong the grid of an attacked picture is; 0 leaves none.
STRONG, NONE = 0.5, 0.0
RECIPE = TrainConfig(num_epochs=6, batch_size=16, learning_rate=1e-3)


class Case(NamedTuple):
  """A row of the table.

  Attributes:
    name: Shown by pytest.
    detector: What is tested.
    classifier: What `fit` and `score` are given.
    save: `(path, state)`, writes what a fitted detector needs.
    restore: `(path, state)`, reads it back; of the state it is given only
      structure, shapes and dtypes count.
  """

  name: str
  detector: Detector
  classifier: Classifier
  save: Callable[..., None]
  restore: Callable[..., PyTree]


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
