"""Measured figures with bootstrap draws, so that differences are paired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxadv.metrics.intervals import Interval, percentile_interval


class Figure(NamedTuple):
  """A number with its draws on resamples of the source pictures.

  Attributes:
    value: In any unit, such as per cent of AUC or points of difference.
    draws: float64[num], the same on the resamples; figures of one run share
      the resamples, so a difference of figures is a paired one.
  """

  value: float
  draws: np.ndarray

  def __sub__(self, other: Figure | float) -> Figure:
    """Subtracts another figure, draw by draw, or a constant."""
    if isinstance(other, Figure):
      return Figure(self.value - other.value, self.draws - other.draws)
    return Figure(self.value - other, self.draws - other)

  @property
  def interval(self) -> Interval:
    """The 95 % percentile interval."""
    return percentile_interval(self.draws)


def mean(figures: Sequence[Figure]) -> Figure:
  """Averages figures draw by draw."""
  return Figure(
    float(np.mean([f.value for f in figures])),
    np.mean([f.draws for f in figures], axis=0),
  )
