"""Measured figures, and how far each can be trusted.

Two kinds of chance stand behind a figure: which pictures it was measured on,
and, where networks were trained for it, how their training went. The first is
known from resamples of the source pictures, the second from several trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxadv.metrics.intervals import Interval, percentile_interval

# Degrees of freedom that the pooled variance of training weighs as: training
# moves some cells of a table far more than others.
POOLED = 4


class Figure(NamedTuple):
  """A number with its draws on resamples of the source pictures.

  Attributes:
    value: In any unit, such as per cent of AUC or points of difference.
    draws: float64[num], the same on the resamples; figures of one run share
      the resamples, so a difference of figures is a paired one.
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

  def __sub__(self, other: Figure | float) -> Figure:
    """Subtracts another figure, draw by draw, or a constant."""
    if isinstance(other, Figure):
      return combine(np.subtract, self, other)
    return combine(lambda own: own - other, self)

  def __rsub__(self, other: float) -> Figure:
    """Subtracts from a constant."""
    return combine(lambda own: other - own, self)

  @property
  def interval(self) -> Interval:
    """The 95 % interval, by its own trainings if there are several."""
    return intervals([self])[0]


class Chance(NamedTuple):
  """How far a figure may be off, as a t distribution.

  Attributes:
    below: Standard deviation towards lower values.
    above: Towards higher ones.
    freedom: Degrees of freedom, infinite where nothing was trained.
  """

  below: float
  above: float
  freedom: float


def combine(function: Callable[..., np.ndarray], *figures: Figure) -> Figure:
  """Computes a figure from others, draw by draw and training by training.

  Args:
    function: Of numbers or of arrays of one shape, element by element.
    *figures: Of one run; those without trainings are the same in all.

  Returns:
    The figure; without printed number unless all of them have one.
  """
  number = max(len(figure.trainings) for figure in figures)
  trainings = [f.trainings or (f.value,) * number for f in figures]
  printed = [figure.paper for figure in figures]
  return Figure(
    float(function(*(figure.value for figure in figures))),
    function(*(figure.draws for figure in figures)),
    tuple(map(float, function(*map(np.asarray, trainings)))) if number else (),
    any(figure.apart for figure in figures),
    None if None in printed else float(function(*printed)),
  )


def mean(figures: Sequence[Figure]) -> Figure:
  """Averages figures draw by draw."""
  return combine(lambda *parts: np.mean(parts, axis=0), *figures)


def over_trainings(
  figures: Sequence[Figure], *, apart: bool = False, paper: float | None = None
) -> Figure:
  """Averages one figure over trainings, of which each gave one.

  Args:
    figures: The figure after each training, with draws of its own.
    apart: As of `Figure`.
    paper: As of `Figure`.
  """
  return Figure(
    float(np.mean([figure.value for figure in figures])),
    np.mean([figure.draws for figure in figures], axis=0),
    tuple(figure.value for figure in figures),
    apart,
    paper,
  )


def chances(
  figures: Sequence[Figure], sampling: Sequence[Interval] | None = None
) -> list[Chance]:
  """Puts both kinds of chance of several figures together.

  The variance of a figure is that of sampling pictures plus that of training.
  Three trainings tell the latter badly, so it is pooled: a figure's own is
  averaged with the mean of all figures, which weighs as `POOLED` degrees
  of freedom. Figures share networks, as the cells of a table of r
  detectors on r sets do, so n of them count as sqrt(n) for the degrees of
  freedom.

  Args:
    figures: Of one table or one claim, in one unit.
    sampling: Their 95 % intervals without training, where those are not the
      percentiles of the draws.

  Returns:
    What is known of each. A single training tells nothing of its variance:
    such figures have that of sampling alone.

  References:
    Smyth, Linear Models and Empirical Bayes Methods for Assessing Differential
    Expression in Microarray Experiments, 2004 (variances drawn towards a
    pooled one; his estimate of its weight takes variances as independent).
    Welch, The Generalization of "Student's" Problem when Several Different
    Population Variances are Involved, 1947 (degrees of freedom of a sum).
  """
  from scipy import stats

  normal = stats.norm.ppf(0.975)
  ends = sampling or [percentile_interval(f.draws) for f in figures]
  found, own, freedoms = [], [], []
  for figure, (low, high) in zip(figures, ends, strict=True):
    below, above = max(figure.value - low, 0.0), max(high - figure.value, 0.0)
    found.append(Chance(below / normal, above / normal, np.inf))
    number = len(figure.trainings)
    if number > 1:
      variance = np.var(figure.trainings, ddof=1) / number
      # What pictures of their own add to it is in the draws already.
      variance -= figure.apart * np.var(figure.draws)
      own.append(variance)
      freedoms.append(number - 1)
  if not own:
    return found
  pooled, most = np.mean(own), np.sum(freedoms) / len(own) ** 0.5
  trained = [row for row, f in enumerate(figures) if len(f.trainings) > 1]
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
  figures: Sequence[Figure],
  sampling: Sequence[Interval] | None = None,
) -> list[Interval]:
  """Computes the 95 % intervals of figures of one table; see `chances`.

  Args:
    figures: Of one table or one claim, in one unit.
    sampling: As of `chances`.

  Returns:
    An interval each; those of figures without trainings are the percentiles
    of their draws, or `sampling`.
  """
  from scipy import stats

  found = []
  for figure, chance in zip(figures, chances(figures, sampling), strict=True):
    reach = stats.t.ppf(0.975, chance.freedom)
    found.append(
      Interval(
        float(figure.value - reach * chance.below),
        float(figure.value + reach * chance.above),
      )
    )
  return found
