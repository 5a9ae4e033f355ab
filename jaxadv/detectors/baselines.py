"""Scores without training, which a trained detector has to beat."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxadv.detectors.feature_network import with_smooth_gradient
from jaxadv.detectors.input_sensitivity import (
  log_input_sensitivity,
  log_odds_against,
)
from jaxadv.types import (
  Batch,
  Detector,
  Images,
  ScorePictures,
  Scores,
  make_detector,
)


def log_sensitivity_detector(*, beta: float | None = 10.0) -> Detector:
  """Makes the detector whose score is log S, see `input_sensitivity`.

  Args:
    beta: Sharpness of the softplus in place of the classifier's ReLU in the
      gradient of `surrogate`, above 0; None for no surrogate.

  Returns:
    A `Detector`; its state is empty.
  """
  smooth = None
  if beta is not None:
    smooth = with_smooth_gradient(log_input_sensitivity, beta)
  return _untrained(log_input_sensitivity, smooth)


def confidence_detector() -> Detector:
  """Makes the detector whose score is 1 - the largest probability.

  Returns:
    A `Detector`; its state is empty. Scores lie in [0, 1) and do not round to
    0 for a sure classifier, so that its pictures keep their order.
  """
  return _untrained(
    lambda classifier, images: jax.nn.sigmoid(
      log_odds_against(classifier(images))
    )
  )


def _untrained(
  score: Callable[[Any, Images], Scores],
  surrogate: Callable[[Any, Images], Scores] | None = None,
) -> Detector:
  def fit(
    key: jax.Array,
    classifier: Any,
    train: Iterable[Batch],
    valid: Iterable[Batch],
  ) -> tuple[()]:
    del key, classifier, train, valid
    return ()

  def with_state(function: Callable[[Any, Images], Scores]) -> ScorePictures:
    return lambda keys, classifier, state, images: function(classifier, images)

  return make_detector(
    fit, with_state(score), surrogate and with_state(surrogate)
  )
