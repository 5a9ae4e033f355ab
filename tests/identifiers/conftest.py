"""A toy with two kinds of attack that anybody can tell apart."""

import jax
import numpy as np
import pytest

from jaxadv.identifiers.backbone import backbone_identifier
from jaxadv.training import TrainConfig
from jaxadv.types import Batch
from tests.detectors import cases

# What `Batch.kind` holds for the classes 1 and 2.
KINDS = (5, 2)
RECIPE = TrainConfig(num_epochs=6, batch_size=16, learning_rate=1e-3)


def pictures(seed, num):
  """Noise; every second picture clean, the others with a grid or stripes."""
  rng = np.random.default_rng(seed)
  size = cases.SIZE
  images = rng.uniform(0.3, 0.7, (num, size, size, 3)).astype(np.float32)
  classes = np.array([0, 1, 0, 2])[np.arange(num) % 4]
  rows, columns = np.indices((size, size))
  patterns = np.stack([0 * rows, (rows + columns) % 2 - 0.5, rows % 2 - 0.5])
  images += 0.5 * patterns[classes][..., None]
  return Batch(
    images=images,
    labels=np.zeros(num, np.int32),
    kind=np.array([0, *KINDS], np.int32)[classes],
    source=np.arange(num, dtype=np.int32),
    mask=np.ones(num, bool),
  ), classes


@pytest.fixture(scope='session')
def identifier():
  """An identifier, its backbone, and its state after a short training."""
  module, classifier = cases.network()
  unit = backbone_identifier(cases.design(module), KINDS, RECIPE)
  state = unit.fit(
    jax.random.key(0),
    classifier,
    cases.batches(pictures(0, 128)[0], 32),
    cases.batches(pictures(1, 32)[0], 32),
  )
  return unit, classifier, state
