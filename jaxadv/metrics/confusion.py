"""Which class is taken for which."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics

from jaxadv.metrics.roc import checked_scores


def confusion_matrix(
  labels: ArrayLike, predicted: ArrayLike, num_classes: int
) -> np.ndarray:
  """Counts predictions by true class; matrices of two batches add up.

  Args:
    labels: int[n], true classes in [0, num_classes).
    predicted: int[n], predicted classes in the same range.
    num_classes: Number of classes, whether or not they occur.

  Returns:
    int64[num_classes, num_classes], true classes down, predicted across.
  """
  return metrics.confusion_matrix(
    labels, predicted, labels=np.arange(num_classes)
  )


def detection_matrix(
  scores: ArrayLike, positive: ArrayLike, threshold: float
) -> np.ndarray:
  """Counts verdicts of a detector; attacked is a score above `threshold`.

  Args:
    scores: [n], higher means more likely attacked.
    positive: bool[n], True where the picture is attacked.
    threshold: As `threshold_at_fpr` gives it.

  Returns:
    int64[2, 2]: [[clean kept, false alarms], [attacks missed, attacks found]].
  """
  called = checked_scores(scores) > threshold
  return confusion_matrix(np.asarray(positive, bool), called, 2)
