"""How far a measured figure can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxadv.errors import UserError
from jaxadv.metrics.roc import checked_scores


class Interval(NamedTuple):
  """A confidence interval, both ends included, in the unit of its figure."""

  low: float
  high: float


def wilson(count: int, n: int, level: float = 0.95) -> Interval:
  """Computes Wilson's score interval of a share.

  Args:
    count: Successes, in [0, n].
    n: Trials, at least 1.
    level: Confidence level in (0, 1).

  Returns:
    The interval, within [0, 1].

  Raises:
    UserError: If a number is out of its range.
  """
  if not 0 <= count <= n or n < 1:
    raise UserError(
      f'{count} successes in {n} trials; give at least one trial and no more '
      'successes than trials'
    )
  from scipy import stats

  interval = stats.binomtest(int(count), int(n)).proportion_ci(
    _checked_level(level), method='wilson'
  )
  return Interval(float(interval.low), float(interval.high))


def share_interval(count: int, n: int) -> Interval:
  """Computes `wilson` in per cent, the unit of shares in tables."""
  low, high = wilson(count, n)
  return Interval(100 * low, 100 * high)


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
  """Computes Student's t interval of a mean, for instance over seeds.

  Args:
    values: [n], n >= 2, independent and about normally distributed.
    level: Confidence level in (0, 1).

  Returns:
    The interval.

  Raises:
    UserError: If there are fewer than two values.
  """
  values = np.asarray(values, float)
  if values.ndim != 1 or values.size < 2:
    raise UserError(
      f'values have the shape {values.shape}; the spread of a mean needs a '
      'vector of at least two'
    )
  from scipy import stats

  half = stats.sem(values) * stats.t.ppf(
    (1 + _checked_level(level)) / 2, values.size - 1
  )
  return Interval(float(values.mean() - half), float(values.mean() + half))


def percentile_interval(draws: ArrayLike, level: float = 0.95) -> Interval:
  """Computes the percentile interval of bootstrap draws.

  Args:
    draws: [num], the figure on every resample.
    level: Confidence level in (0, 1).

  Returns:
    The interval.
  """
  tail = (1 - _checked_level(level)) / 2
  low, high = np.quantile(checked_scores(draws, 'draws'), [tail, 1 - tail])
  return Interval(float(low), float(high))


def bootstrap_auc(
  clean_scores: ArrayLike,
  attacked_scores: ArrayLike,
  clean_sources: ArrayLike,
  attacked_sources: ArrayLike,
  *,
  num: int = 1000,
  seed: int = 0,
  level: float = 0.95,
) -> Interval:
  """Bootstraps the AUC over source pictures; see `auc_draws`.

  Returns:
    The percentile interval of the AUC, within [0, 1].
  """
  draws = auc_draws(
    clean_scores,
    attacked_scores,
    clean_sources,
    attacked_sources,
    num=num,
    seed=seed,
  )
  return percentile_interval(draws, level)


def auc_draws(
  clean_scores: ArrayLike,
  attacked_scores: ArrayLike,
  clean_sources: ArrayLike,
  attacked_sources: ArrayLike,
  *,
  num: int = 1000,
  seed: int = 0,
) -> np.ndarray:
  """Computes the AUC on resamples of the source pictures.

  A clean picture and its attacked version are not independent, so sources are
  drawn rather than pictures: whatever shares a source id is drawn together.
  Sources seen in both classes, only clean and only attacked are drawn apart
  from one another, so that every resample has pictures of both classes.

  Two calls with the same source ids and seed use the same resamples, so the
  difference (or mean) of their draws is a paired one.

  Args:
    clean_scores: [n], higher means more likely attacked.
    attacked_scores: [m].
    clean_sources: int[n], ids of the original pictures.
    attacked_sources: int[m].
    num: Number of resamples, at least 1.
    seed: Of the random draws.

  Returns:
    float64[num], ties counting one half.

  Raises:
    UserError: If shapes do not fit or `num` is not positive.
    DataError: If a score is NaN.

  References:
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8
    (more complicated data structures) and section 13.3 (percentiles).
  """
  clean = checked_scores(clean_scores, 'clean scores')
  attacked = checked_scores(attacked_scores, 'attacked scores')
  sources = (np.asarray(clean_sources), np.asarray(attacked_sources))
  if sources[0].shape != clean.shape or sources[1].shape != attacked.shape:
    raise UserError(
      f'{clean.shape} and {attacked.shape} scores with {sources[0].shape} and '
      f'{sources[1].shape} source ids; give one id a score'
    )
  if num < 1:
    raise UserError(f'num is {num}; it must be at least 1')

  ids, rows = np.unique(np.concatenate(sources), return_inverse=True)
  in_clean, in_attacked = rows[: clean.size], rows[clean.size :]
  stratum = np.isin(ids, sources[0]) + 2 * np.isin(ids, sources[1])
  weights = _resample(stratum, num, np.random.default_rng(seed))

  order = np.argsort(clean, kind='stable')
  clean_weights = weights[:, in_clean[order]]
  attacked_weights = weights[:, in_attacked]
  # below[:, i]: the drawn clean pictures among the i lowest scores.
  below = np.pad(np.cumsum(clean_weights, axis=1), ((0, 0), (1, 0)))
  less = np.searchsorted(clean, attacked, 'left', sorter=order)
  equal = np.searchsorted(clean, attacked, 'right', sorter=order)
  wins = np.einsum('ij,ij->i', attacked_weights, below[:, less])
  wins += np.einsum('ij,ij->i', attacked_weights, below[:, equal])
  pairs = below[:, -1] * attacked_weights.sum(axis=1)
  return wins / (2 * pairs)


def share_draws(
  holds: Sequence[ArrayLike],
  sources: Sequence[ArrayLike],
  *,
  num: int = 1000,
  seed: int = 0,
) -> np.ndarray:
  """Computes shares of groups of pictures on resamples of their sources.

  Sources are drawn as in `auc_draws`, those that occur in the same groups
  apart from the others; groups are drawn together, so that sums and
  differences of their draws are paired ones. So are those of two calls with
  the same source ids and seed.

  Args:
    holds: bool[n] of each group, what is counted.
    sources: int[n] of each group, ids of the original pictures.
    num: Number of resamples, at least 1.
    seed: Of the random draws.

  Returns:
    float64[len(holds), num], shares of the pictures that it holds for.

  Raises:
    UserError: If shapes do not fit, a group is empty or `num` is not positive.
  """
  held = [np.asarray(group, bool) for group in holds]
  drawn = [np.asarray(group) for group in sources]
  if [g.shape for g in held] != [g.shape for g in drawn] or not all(
    group.size for group in held
  ):
    raise UserError(
      f'groups of {[g.shape for g in held]} with '
      f'{[g.shape for g in drawn]} source ids; give one id a picture, and a '
      'picture a group'
    )
  if num < 1:
    raise UserError(f'num is {num}; it must be at least 1')
  ids, rows = np.unique(np.concatenate(drawn), return_inverse=True)
  stratum = sum(np.isin(ids, own) << i for i, own in enumerate(drawn))
  weights = _resample(np.asarray(stratum), num, np.random.default_rng(seed))
  parts = np.split(rows, np.cumsum([group.size for group in drawn])[:-1])
  return np.stack(
    [
      weights[:, part] @ own / weights[:, part].sum(axis=1)
      for own, part in zip(held, parts, strict=True)
    ]
  )


def _resample(
  stratum: np.ndarray, num: int, rng: np.random.Generator
) -> np.ndarray:
  """Counts how often each source is drawn, float64[num, len(stratum)]."""
  weights = np.empty((num, stratum.size))
  for value in np.unique(stratum):
    members = np.flatnonzero(stratum == value)
    n = members.size
    drawn = rng.integers(n, size=(num, n)) + n * np.arange(num)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=num * n)
    weights[:, members] = counts.reshape(num, n)
  return weights


def _checked_level(level: float) -> float:
  if not 0 < level < 1:
    raise UserError(f'level is {level}; it must lie in (0, 1), such as 0.95')
  return level
