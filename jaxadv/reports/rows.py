"""Rows of results: what was measured, with intervals and printed numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxadv.metrics.estimates import Estimate, intervals
from jaxadv.metrics.intervals import Interval, share_interval

# Below this number of test pictures a row is flagged wherever it is shown.
FEW_PICTURES = 100


@dataclasses.dataclass(frozen=True)
class Row:
  """One measured number.

  Attributes:
    labels: What it was measured on, such as {'backbone': 'VGG16', 'kind':
      'FGSM'}; plain values.
    metric: Name with unit, such as 'AUC (%)'.
    value: Finite.
    ci_low: Lower end of the 95 % interval, or None.
    ci_high: Upper end.
    n: Test pictures (of the kind in question) behind the value.
    paper: The printed number in the same unit, or None.
  """

  labels: Mapping[str, Any]
  metric: str
  value: float
  ci_low: float | None = None
  ci_high: float | None = None
  n: int | None = None
  paper: float | None = None

  @property
  def few(self) -> bool:
    """Whether too few pictures stand behind the value to lean on it."""
    return self.n is not None and self.n < FEW_PICTURES


def estimate_rows(
  labels: Sequence[Mapping[str, Any]],
  metric: str,
  estimates: Sequence[Estimate],
  n: int | Sequence[int],
  sampling: Sequence[Interval] | None = None,
) -> list[Row]:
  """Makes the rows of one table, over which training variance is pooled.

  Args:
    labels: Of each row.
    metric: Of all of them; those in '(%)' lie within [0, 100].
    estimates: Of each row, with the printed number.
    n: Test pictures behind all of them, or behind each.
    sampling: As of `metrics.estimates.intervals`.

  Returns:
    A row each, with its 95 % interval.
  """
  numbers = [n] * len(labels) if isinstance(n, int) else n
  low, high = (0.0, 100.0) if metric.endswith('(%)') else (-math.inf, math.inf)
  return [
    Row(
      own,
      metric,
      estimate.value,
      max(interval.low, low),
      min(interval.high, high),
      n=number,
      paper=estimate.paper,
    )
    for own, estimate, interval, number in zip(
      labels, estimates, intervals(estimates, sampling), numbers, strict=True
    )
  ]


def share_rows(
  labels: Sequence[Mapping[str, Any]],
  metric: str,
  estimates: Sequence[Estimate],
  n: int | Sequence[int],
) -> list[Row]:
  """Makes the rows of a table of shares: Wilson's interval, and training.

  Args:
    labels: Of each row.
    metric: Of all of them.
    estimates: Shares in per cent, with the printed numbers.
    n: Test pictures behind all of them, or behind each.
  """
  numbers = [n] * len(labels) if isinstance(n, int) else n
  sampling = [
    share_interval(round(e.value * n / 100), n)
    for e, n in zip(estimates, numbers, strict=True)
  ]
  return estimate_rows(labels, metric, estimates, numbers, sampling)


def share_row(
  labels: Mapping[str, Any],
  metric: str,
  holds: np.ndarray,
  paper: float | None = None,
) -> Row:
  """Makes the row of a share in per cent, bool[n], with Wilson's interval."""
  return count_row(labels, metric, int(np.sum(holds)), len(holds), paper)


def count_row(
  labels: Mapping[str, Any],
  metric: str,
  count: int,
  n: int,
  paper: float | None = None,
) -> Row:
  """Makes the same of a count of n."""
  low, high = share_interval(count, n)
  return Row(labels, metric, 100 * count / n, low, high, n, paper)
