"""Fits a detector on clean and attacked pictures and measures it on others."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxadv.attacks.inputs import attack_inputs, check_classifier
from jaxadv.classifier import Classifier, as_classifier
from jaxadv.data import pipeline
from jaxadv.detectors.fitted import FittedDetector, check_detector, fit
from jaxadv.errors import DoubtWarning, UserError
from jaxadv.inputs import as_key
from jaxadv.metrics import roc
from jaxadv.types import Detector, picture_keys


class Measured(NamedTuple):
  """A fitted detector and how it did on pictures it was not fitted on.

  Attributes:
    auc: Area under the ROC curve, in [0, 1]; one half is chance.
    scores: float[n], of the test pictures; higher means more likely attacked.
    attacked: bool[n], which of them are attacked.
    source: int32[n], ids of the pictures they come from.
    fitted: The detector, a function from images to scores.
  """

  auc: float
  scores: np.ndarray
  attacked: np.ndarray
  source: np.ndarray
  fitted: FittedDetector


def measure(
  key: jax.Array,
  detector: Detector,
  classifier: Classifier | None,
  clean: pipeline.Labelled,
  attacked: pipeline.Labelled,
  *,
  shares: Sequence[float] = (0.45, 0.05, 0.5),
  seed: int = 0,
  batch_size: int = 128,
) -> Measured:
  """Fits a detector on some source pictures and scores the versions of others.

  A clean picture and its attacked version share their source id and fall on
  the same side, so no picture is tested whose other version was learnt.

  Args:
    key: One key.
    detector: Any `Detector`.
    classifier: What its `fit` and `score` are given; None for a detector that
      does not ask one.
    clean: Clean pictures: `Pictures` or an `AdversarialSet`, uint8 or
      floating in [0, 1], which is rounded to 8 bit.
    attacked: Attacked pictures, likewise; with `evaluate`, the clean ones
      `._replace(images=found.images_uint8)`.
    shares: Of the source pictures, to train, validate and test on.
    seed: Seed of the split.
    batch_size: Rows of a batch; scores do not depend on it.

  Returns:
    The fitted detector, its AUC and its scores.

  Raises:
    UserError: If pictures or labels have another dtype, shape or range, a
      side of the split is empty, or `shares` add up to more than 1.
    DataError: If a score is NaN, or the classifier gives one.

  Warns:
    DoubtWarning: If the outputs of the classifier are doubtful; see
      `jaxadv.attacks.evaluate`.
  """
  key = as_key(key)
  check_detector(detector)
  if len(shares) != 3:
    raise UserError(
      f'shares are {tuple(shares)} but must be three: to train, validate, test'
    )
  known, changed = pipeline.stored(clean), pipeline.stored(attacked, kind=1)
  both = pipeline.concatenate([known, changed])
  if not np.isin(changed.source, known.source).any():
    warnings.warn(
      'no attacked picture has the source id of a clean one; if they are '
      'versions of the same pictures, give them the same ids, or a picture may '
      'be learnt and its other version tested',
      DoubtWarning,
      stacklevel=2,
    )
  if classifier is not None:
    classifier = as_classifier(classifier)
    inputs = attack_inputs(known.images, known.labels, known.source)
    check_classifier(classifier, key, inputs)
  train, valid, test = (
    pipeline.batches(pipeline.select(both, side), batch_size)
    for side in pipeline.split_by_source(seed, np.asarray(both.source), shares)
  )
  key_fit, key_score = jax.random.split(key)
  fitted = fit(key_fit, detector, classifier, train, valid)
  scores = np.concatenate(
    [
      np.asarray(fitted(batch.images, picture_keys(key_score, batch.source)))[
        batch.mask
      ]
      for batch in test
    ]
  )
  positive = np.asarray(test.batch.kind) != 0
  return Measured(
    auc=roc.auc(scores, positive),
    scores=scores,
    attacked=positive,
    source=np.asarray(test.batch.source),
    fitted=fitted,
  )
