"""Estimates: measured numbers, and how far each can be trusted.

Two kinds of chance stand behind an estimate: which pictures it was measured on,
and, where networks were trained for it, how their training went. The first is
known from resamples of the source pictures, the second from several trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxadv.metrics.intervals import (
  Interval,
  auc_draws,
  percentile_interval,
  share_draws,
)
from jaxadv.metrics.roc import auc

# Degrees of freedom that the pooled variance of training weighs as: training
# moves some cells of a table far more than others.
POOLED = 4


class Estimate(NamedTuple):
  """A number with its draws on resamples of the source pictures.

  Attributes:
    value: In any unit, such as per cent of AUC or points of difference.
    draws: float64[num], the same on the resamples; estimates of one run
      share the resamples, so a difference of estimates is a paired one.
    trainings: The same after each of several trainings, whose mean it is;
      empty where nothing was trained.
    apart: Whether each training was tested on pictures of its own.
    paper: The printed number, or None.
  """

  value: float
  draws: np.ndarray
  trainings: tuple[float, ...] = ()
  apart: bool = False
  paper: float | None = None

  def __sub__(self, other: Estimate | float) -> Estimate:
    """Subtracts another estimate, draw by draw, or a constant."""
    if isinstance(other, Estimate):
      return combine(np.subtract, self, other)
    return combine(lambda own: own - other, self)

  def __rsub__(self, other: float) -> Estimate:
    """Subtracts from a constant."""
    return combine(lambda own: other - own, self)

  @property
  def interval(self) -> Interval:
    """The 95 % interval, by its own trainings if there are several."""
    return intervals([self])[0]


def auc_estimate(
  clean: np.ndarray,
  attacked: np.ndarray,
  clean_sources: np.ndarray,
  attacked_sources: np.ndarray,
) -> Estimate:
  """Computes the AUC in per cent of two groups of scores.

  Args:
    clean: float[n], higher means more likely attacked.
    attacked: float[m].
    clean_sources: int[n], ids of the source pictures.
    attacked_sources: int[m].
  """
  scores = np.concatenate([clean, attacked])
  positive = np.arange(len(scores)) >= len(clean)
  draws = auc_draws(clean, attacked, clean_sources, attacked_sources)
  return Estimate(100 * float(auc(scores, positive)), 100 * draws)


def share_estimates(
  holds: Sequence[np.ndarray], sources: Sequence[np.ndarray]
) -> list[Estimate]:
  """Computes shares in per cent of groups of pictures that are drawn together.

  Args:
    holds: bool[n] of each group, what is counted.
    sources: int[n] of each group, ids of the source pictures.
  """
  draws = share_draws(list(holds), list(sources))
  return [
    Estimate(100 * float(np.mean(held)), 100 * own)
    for held, own in zip(holds, draws, strict=True)
  ]


def share_estimate(
  holds: np.ndarray, sources: np.ndarray, paper: float | None = None
) -> Estimate:
  """Computes the share of one group of pictures in per cent.

  Args:
    holds: bool[n], or bool[S, n] after each of S trainings.
    sources: int[n], ids of the source pictures.
    paper: The printed number.
  """
  if holds.ndim == 2:
    each = [share_estimate(own, sources) for own in holds]
    return over_trainings(each, paper=paper)
  (found,) = share_estimates([holds], [sources])
  return found._replace(paper=paper)


class Chance(NamedTuple):
  """How far an estimate may be off, as a t distribution.

  Attributes:
    below: Standard deviation towards lower values.
    above: Towards higher ones.
    freedom: Degrees of freedom, infinite where nothing was trained.
  """

  below: float
  above: float
  freedom: float


def combine(
  function: Callable[..., np.ndarray], *estimates: Estimate
) -> Estimate:
  """Computes an estimate from others, draw by draw and training by training.

  Args:
    function: Of numbers or of arrays of one shape, element by element.
    *estimates: Of one run; those without trainings are the same in all.

  Returns:
    The estimate; without printed number unless all of them have one.
  """
  number = max(len(estimate.trainings) for estimate in estimates)
  trainings = [f.trainings or (f.value,) * number for f in estimates]
  printed = [estimate.paper for estimate in estimates]
  return Estimate(
    float(function(*(estimate.value for estimate in estimates))),
    function(*(estimate.draws for estimate in estimates)),
    tuple(map(float, function(*map(np.asarray, trainings)))) if number else (),
    any(estimate.apart for estimate in estimates),
    None if None in printed else float(function(*printed)),
  )


def mean(estimates: Sequence[Estimate]) -> Estimate:
  """Averages estimates draw by draw."""
  return combine(lambda *parts: np.mean(parts, axis=0), *estimates)


def over_trainings(
  estimates: Sequence[Estimate],
  *,
  apart: bool = False,
  paper: float | None = None,
) -> Estimate:
  """Averages one estimate over trainings, of which each gave one.

  Args:
    estimates: The estimate after each training, with draws of its own.
    apart: As of `Figure`.
    paper: As of `Figure`.
  """
  return Estimate(
    float(np.mean([estimate.value for estimate in estimates])),
    np.mean([estimate.draws for estimate in estimates], axis=0),
    tuple(estimate.value for estimate in estimates),
    apart,
    paper,
  )


def chances(
  estimates: Sequence[Estimate], sampling: Sequence[Interval] | None = None
) -> list[Chance]:
  """Puts both kinds of chance of several estimates together.

  The variance of an estimate is that of sampling pictures plus that of
  training. Three trainings tell the latter badly, so it is pooled: its own is
  averaged with the mean of all estimates, which weighs as `POOLED` degrees
  of freedom. Figures share networks, as the cells of a table of r
  detectors on r sets do, so n of them count as sqrt(n) for the degrees of
  freedom.

  Args:
    estimates: Of one table or one claim, in one unit.
    sampling: Their 95 % intervals without training, where those are not the
      percentiles of the draws.

  Returns:
    What is known of each. A single training tells nothing of its variance:
    such estimates have that of sampling alone.

  References:
    Smyth, Linear Models and Empirical Bayes Methods for Assessing Differential
    Expression in Microarray Experiments, 2004 (variances drawn towards a
    pooled one; his estimate of its weight takes variances as independent).
    Welch, The Generalization of "Student's" Problem when Several Different
    Population Variances are Involved, 1947 (degrees of freedom of a sum).
  """
  from scipy import stats

  normal = stats.norm.ppf(0.975)
  ends = sampling or [percentile_interval(f.draws) for f in estimates]
  found, own, freedoms = [], [], []
  for estimate, (low, high) in zip(estimates, ends, strict=True):
    below, above = (
      max(estimate.value - low, 0.0),
      max(high - estimate.value, 0.0),
    )
    found.append(Chance(below / normal, above / normal, np.inf))
    number = len(estimate.trainings)
    if number > 1:
      variance = np.var(estimate.trainings, ddof=1) / number
      # What pictures of their own add to it is in the draws already.
      variance -= estimate.apart * np.var(estimate.draws)
      own.append(variance)
      freedoms.append(number - 1)
  if not own:
    return found
  pooled, most = np.mean(own), np.sum(freedoms) / len(own) ** 0.5
  trained = [row for row, f in enumerate(estimates) if len(f.trainings) > 1]
  for row, variance, freedom in zip(trained, own, freedoms, strict=True):
    total = freedom + POOLED
    drawn = (freedom * variance + POOLED * pooled) / total
    found[row] = _with_training(
      found[row], max(float(drawn), 0.0), min(total, float(most))
    )
  return found


def _with_training(chance: Chance, variance: float, freedom: float) -> Chance:
  below, above = chance.below**2 + variance, chance.above**2 + variance
  if variance:
    freedom *= (min(below, above) / variance) ** 2
  return Chance(below**0.5, above**0.5, freedom if variance else np.inf)


def intervals(
  estimates: Sequence[Estimate],
  sampling: Sequence[Interval] | None = None,
) -> list[Interval]:
  """Computes the 95 % intervals of estimates of one table; see `chances`.

  Args:
    estimates: Of one table or one claim, in one unit.
    sampling: As of `chances`.

  Returns:
    An interval each; those of estimates without trainings are the percentiles
    of their draws, or `sampling`.
  """
  from scipy import stats

  found = []
  for estimate, chance in zip(
    estimates, chances(estimates, sampling), strict=True
  ):
    reach = stats.t.ppf(0.975, chance.freedom)
    found.append(
      Interval(
        float(estimate.value - reach * chance.below),
        float(estimate.value + reach * chance.above),
      )
    )
  return found
