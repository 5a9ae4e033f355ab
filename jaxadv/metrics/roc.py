"""How well scores tell attacked pictures from clean ones.

A score is higher for pictures that look attacked; attacked is the positive
class. All figures are fractions in [0, 1], not per cent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxadv.errors import DataError, UserError


class Curve(NamedTuple):
  """A ROC curve, from the strictest threshold to the most lenient.

  Attributes:
    fpr: float64[P], share of clean pictures with a score of at least
      `threshold`.
    tpr: float64[P], share of attacked pictures with such a score.
    threshold: float64[P], falling; the first is infinite.
  """

  fpr: np.ndarray
  tpr: np.ndarray
  threshold: np.ndarray


def checked_scores(scores: ArrayLike, what: str = 'scores') -> np.ndarray:
  """Gives scores as a vector, after making sure that they can be ranked.

  Args:
    scores: Numbers of shape [n], n > 0.
    what: What the error calls them.

  Returns:
    The scores, [n].

  Raises:
    UserError: If they are not a vector or there are none.
    DataError: If one of them is not a number.
  """
  scores = np.asarray(scores)
  if scores.ndim != 1 or not scores.size:
    raise UserError(
      f'{what} have the shape {scores.shape}; give one score a picture, and at '
      'least one'
    )
  bad = np.flatnonzero(np.isnan(scores))
  if bad.size:
    raise DataError(
      f'{bad.size} of {scores.size} {what} are NaN, the first at row {bad[0]}'
    )
  return scores


def as_flags(values: ArrayLike, what: str) -> np.ndarray:
  """Gives what holds or not as bool, or says why that cannot be.

  Args:
    values: bool[n], or numbers 0 and 1.
    what: What the error calls them.

  Returns:
    bool[n].

  Raises:
    UserError: If a value is something else, as scores in the wrong place are.
  """
  array = np.asarray(values)
  if array.dtype != bool and not np.isin(array, (0, 1)).all():
    raise UserError(
      f'{what} holds other values than True and False, such as '
      f'{array[~np.isin(array, (0, 1))].flat[0]}'
    )
  return array.astype(bool)


def _checked(
  scores: ArrayLike, positive: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
  scores, positive = checked_scores(scores), as_flags(positive, 'positive')
  if positive.shape != scores.shape:
    raise UserError(
      f'{scores.shape} scores and {positive.shape} classes; give as many of '
      'one as of the other'
    )
  if positive.all() or not positive.any():
    raise UserError(
      'a ROC curve needs clean and attacked pictures; all of these are '
      f'{"attacked" if positive.all() else "clean"}'
    )
  return scores, positive


def auc(scores: ArrayLike, positive: ArrayLike) -> float:
  """Computes the area under the ROC curve.

  The probability that an attacked picture scores higher than a clean one,
  ties counting one half.

  Args:
    scores: [n], higher means more likely attacked; infinities may occur.
    positive: bool[n], True where the picture is attacked.

  Returns:
    A number in [0, 1].

  Raises:
    UserError: If the lengths differ or one class is absent.
    DataError: If a score is NaN.
  """
  from sklearn import metrics

  scores, positive = _checked(scores, positive)
  # Ranks, since scikit-learn refuses infinite scores.
  ranks = np.unique(scores, return_inverse=True)[1]
  return float(metrics.roc_auc_score(positive, ranks))


def roc_curve(scores: ArrayLike, positive: ArrayLike) -> Curve:
  """Computes the ROC curve; points on a straight line are left out.

  Args:
    scores: [n], higher means more likely attacked; infinities may occur.
    positive: bool[n], True where the picture is attacked.

  Returns:
    A `Curve` from (0, 0) to (1, 1).

  Raises:
    UserError: If the lengths differ or one class is absent.
    DataError: If a score is NaN.
  """
  scores, positive = _checked(scores, positive)
  return _points(scores, positive, drop_intermediate=True)


def _points(
  scores: np.ndarray, positive: np.ndarray, *, drop_intermediate: bool
) -> Curve:
  """Computes the curve from ranks, as scikit-learn refuses infinite scores."""
  from sklearn import metrics

  values, ranks = np.unique(scores, return_inverse=True)
  fpr, tpr, rank = metrics.roc_curve(
    positive, ranks, drop_intermediate=drop_intermediate
  )
  # The first threshold lies above all scores.
  threshold = np.append(np.inf, values[rank[1:].astype(int)])
  return Curve(fpr, tpr, threshold)


def fpr_at_tpr(
  scores: ArrayLike, positive: ArrayLike, tpr: float = 0.95
) -> float:
  """Computes the false alarms paid for finding a share of the attacked.

  Args:
    scores: [n], higher means more likely attacked.
    positive: bool[n], True where the picture is attacked.
    tpr: The least share of attacked pictures to find, in (0, 1].

  Returns:
    The smallest share of clean pictures that a threshold reaching `tpr` calls
    attacked.

  Raises:
    UserError: If `tpr` lies outside (0, 1], the lengths differ or one class
      is absent.
    DataError: If a score is NaN.
  """
  if not 0 < tpr <= 1:
    raise UserError(f'tpr is {tpr}; it must lie in (0, 1]')
  scores, positive = _checked(scores, positive)
  # All points: those dropped from straight lines can be the answer.
  curve = _points(scores, positive, drop_intermediate=False)
  # Slack for shares such as 19/20 that have no exact binary form.
  return float(curve.fpr[np.argmax(curve.tpr >= tpr - 1e-12)])


def threshold_at_fpr(clean_scores: ArrayLike, fpr: float) -> float:
  """Finds the threshold that raises at most a share of false alarms.

  A picture is called attacked if its score is greater than the threshold.

  Args:
    clean_scores: [n], scores of clean pictures.
    fpr: The largest share of them to call attacked, in [0, 1].

  Returns:
    The smallest such threshold: one of the scores, or -inf if `fpr` is 1.

  Raises:
    UserError: If `fpr` lies outside [0, 1] or there are no scores.
    DataError: If a score is NaN.
  """
  if not 0 <= fpr <= 1:
    raise UserError(f'fpr is {fpr}; it must lie in [0, 1]')
  falling = np.sort(checked_scores(clean_scores, 'clean scores'))[::-1]
  allowed = int(fpr * falling.size + 1e-9)
  return float(falling[allowed]) if allowed < falling.size else -np.inf
