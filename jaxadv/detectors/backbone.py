"""A detector on top of a pretrained network, its early part frozen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxadv.classifier import Classifier
from jaxadv.training import FitResult, TrainConfig, TrainState, take_member
from jaxadv.training.frozen import (
  Design,
  fit_heads,
  picture_logits,
  pool_logits,
  pooled,
  prefix_features,
)
from jaxadv.types import Batch, Detector, Images, Keys, Scores, make_detector

__all__ = [
  'Design',
  'backbone_detector',
  'fit_detectors',
  'prefix_features',
  'score_detectors',
]


def fit_detectors(
  keys: jax.Array,
  design: Design,
  classifier: Classifier,
  features: jax.Array,
  attacked: np.ndarray,
  train_rows: np.ndarray,
  valid_rows: np.ndarray,
  config: TrainConfig = TrainConfig(),
  **options: Any,
) -> FitResult:
  """Trains E detectors on one frozen prefix in one compiled program.

  Binary cross-entropy; the defaults of `config` are the paper's: Adam at
  1e-4, halved when the loss on the validation rows has not fallen for three
  epochs, 30 epochs, batches of 32.

  Args:
    keys: key[E]; a detector depends on its own key, labels and rows only.
    design: The design of all of them.
    classifier: The backbone with its weights, where all of them start.
    features: float32[P, h, w, c], `prefix_features` of a pool of pictures.
    attacked: bool[E, P], the labels that each detector learns.
    train_rows: int32[E, n], rows of the pool that each trains on.
    valid_rows: int32[E, m], rows that its learning rate is scheduled by.
    config: Epochs, batch size, optimizer and schedule.
    **options: As of `jaxadv.training.fit_members` (mesh, checkpoints, ...).

  Returns:
    The stacked states and histories.

  References:
    Agarwal et al., Exploring Robustness Connection between Artificial and
    Natural Adversarial Examples, CVPR workshops 2022, section 4.
  """
  return fit_heads(
    keys,
    design,
    classifier,
    features,
    attacked,
    train_rows,
    valid_rows,
    config,
    **options,
  )


def score_detectors(
  design: Design,
  state: TrainState,
  features: jax.Array,
  *,
  batch_size: int = 256,
  **options: Any,
) -> np.ndarray:
  """Scores a pool of pictures with E detectors.

  Args:
    design: Their design.
    state: Their stacked states, from `fit_detectors`.
    features: float32[P, h, w, c], `prefix_features` of the pool.
    batch_size: Pictures at a time.
    **options: As of `jaxadv.training.measure_members` (mesh, member_mode).

  Returns:
    float32[E, P] logits, higher means more likely attacked.
  """
  return pool_logits(design, state, features, batch_size=batch_size, **options)[
    ..., 0
  ]


def backbone_detector(
  design: Design, config: TrainConfig = TrainConfig()
) -> Detector:
  """Makes the detector of one network and one pool of attacked pictures.

  Args:
    design: The detector's design; the classifier that `fit` and `score` are
      given is the backbone with its weights.
    config: Epochs, batch size, optimizer and schedule.

  Returns:
    A `Detector`; whatever is not of kind 0 counts as attacked. Scores are
    logits. Its `score` is differentiable and needs no surrogate.

  Example:
    >>> detector = backbone_detector(Design(module, 'block3', 'block5'))
    >>> state = detector.fit(key, classifier, train, valid)
    >>> scores = detector.score(None, classifier, state, images)
  """

  def fit(
    key: jax.Array,
    classifier: Classifier,
    train: Iterable[Batch],
    valid: Iterable[Batch],
  ) -> TrainState:
    features, kind, train_rows, valid_rows = pooled(
      design, classifier, train, valid
    )
    result = fit_detectors(
      key[None],
      design,
      classifier,
      features,
      (kind != 0)[None],
      train_rows,
      valid_rows,
      config,
    )
    return take_member(result.state, 0)

  def score(
    keys: Keys | None,
    classifier: Classifier,
    state: TrainState,
    images: Images,
  ) -> Scores:
    del keys  # Nothing in it is random.
    return picture_logits(design, classifier, state, images)[:, 0]

  return make_detector(fit, score)
