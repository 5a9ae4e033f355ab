"""A detector with what it has learnt: pictures in, scores out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from jaxadv.classifier import as_classifier
from jaxadv.errors import UserError
from jaxadv.inputs import as_float, as_key, check_numbers, check_shape
from jaxadv.types import Batch, Detector, Images, Keys, PyTree, Scores


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['classifier', 'state'],
  meta_fields=['detector'],
)
# Told apart as an object: arrays have no hash, which `jit` asks for.
@dataclasses.dataclass(frozen=True, eq=False)
class FittedDetector:
  """Maps images to scores; built by `fit`, `measure` or `load`.

  A pytree whose leaves are weights, so that new ones of the same shapes do not
  retrace what it is given to. Attacks take it where they take a score, such as
  `attacks.evading`.

  Attributes:
    detector: The pair of `fit` and `score`.
    classifier: What both are given: a callable pytree, or None.
    state: What `fit` gave.
  """

  detector: Detector
  classifier: Any
  state: PyTree

  def __call__(self, images: ArrayLike, keys: Keys | None = None) -> Scores:
    """Scores pictures; pure, and compiled for each number of them.

    Args:
      images: [B, H, W, C], uint8 or floating in [0, 1].
      keys: key[B], one a picture (see `picture_keys`), for a detector that
        draws, such as `tws_detector`.

    Returns:
      float32[B], higher means more likely attacked.

    Raises:
      UserError: If the pictures are something else or do not fit the detector,
        or keys are missing.
      DataError: If a picture or, outside of `jit`, a score is NaN.
    """
    images = jnp.asarray(as_float(images))
    check_shape(images)
    scores = _score(self, images, keys)
    check_numbers(scores, 'scores')
    return scores


@jax.jit
def _score(fitted: FittedDetector, images: Images, keys: Keys | None) -> Scores:
  return fitted.detector.score(keys, fitted.classifier, fitted.state, images)


def check_detector(detector: Any) -> None:
  """Refuses what is no detector.

  Args:
    detector: What the user gave.

  Raises:
    UserError: If it is no `Detector`.
  """
  if not isinstance(detector, Detector):
    raise UserError(
      f'detector is {detector!r:.60} but must be a Detector; call the function '
      'that makes it, or put one together with types.make_detector'
    )


def fit(
  key: jax.Array,
  detector: Detector,
  classifier: Any,
  train: Iterable[Batch],
  valid: Iterable[Batch],
) -> FittedDetector:
  """Fits a detector.

  Args:
    key: One key.
    detector: Any `Detector`.
    classifier: The classifier whose attacks are to be detected, or a function
      from images to logits; None for a detector that does not ask one.
    train: Batches to learn from, which can be read again and again.
    valid: Others, to choose by.

  Returns:
    The detector as a function from images to scores.

  Raises:
    UserError: If an argument is something else.
    DataError: If a picture holds NaN.

  Example:
    >>> detector = network_detector(image_size=16)
    >>> fitted = fit(key, detector, None, train, valid)
    >>> scores = fitted(images)
  """
  check_detector(detector)
  if classifier is not None:
    classifier = as_classifier(classifier)
  state = detector.fit(as_key(key), classifier, train, valid)
  return FittedDetector(detector, classifier, state)
