"""Verdicts on claims, as comparisons that ought to be positive.

A claim held if every difference is positive with its whole 95 % interval. It
did not if one is negative, by Holm's correction for looking at all of them at
a level of 5 %. Otherwise the run cannot tell. A claim is not tested at all
where the setting cannot bear it, whatever the numbers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxadv.metrics.estimates import Chance, Estimate, chances, intervals
from jaxadv.reports.record import Claim
from jaxadv.reports.rows import FEW_PICTURES

LEVEL = 0.05
# An end that is 0 may come out as a little more.
ROUNDING = 1e-9
TRAINED_ONCE = (
  'networks were trained once, so the spread of training is not in the '
  'intervals'
)


class Comparison(NamedTuple):
  """A difference that ought to be positive.

  Attributes:
    text: What is compared, in words.
    estimate: The difference, in points of AUC or accuracy.
  """

  text: str
  estimate: Estimate


def judge(
  text: str,
  comparisons: Sequence[Comparison],
  *,
  n: int | None = None,
  unfit: Sequence[str] = (),
  generous: Sequence[str] = (),
  harsh: Sequence[str] = (),
  once: Sequence[str] = (),
) -> Claim:
  """Gives the verdict on a claim, and on the paper's own numbers.

  Args:
    text: The claim in one sentence.
    comparisons: What it rests on; none for what a run does not have.
    n: Test pictures of the comparison that has the fewest.
    unfit: Why the setting cannot bear the claim, if it cannot.
    generous: Why the setting favours the claim, such as a baseline that has
      not converged: it may still fail, but not hold.
    harsh: Why the setting disfavours the claim: it may still hold, but not
      fail.
    once: What the differences rest on that was trained only once, such as
      'PixelCNN++', apart from the victim.

  Returns:
    The claim. Intervals have the variance of training pooled over its
    differences. The paper's numbers are judged by their signs alone.
  """
  estimates = [c.estimate for c in comparisons]
  reasons = list(unfit)
  if not comparisons:
    reasons.append('the run has nothing to compare')
  if n is not None and n < FEW_PICTURES:
    reasons.append(f'{n} test pictures are fewer than {FEW_PICTURES}')
  if any(len(estimate.trainings) == 1 for estimate in estimates):
    reasons.append(TRAINED_ONCE)
  found = intervals(estimates)
  failed = bool(np.any(holm(_below_zero(estimates)) < LEVEL))
  if failed:
    verdict, doubts = 'did not', harsh
  elif all(interval.low > ROUNDING for interval in found):
    verdict, doubts = 'held', generous
  else:
    verdict, doubts = 'cannot tell', (*generous, *harsh)
  reasons += doubts
  if reasons:
    verdict = 'not tested'
  numbers = {
    c.text: [round(number, 1) for number in (c.estimate.value, *interval)]
    for c, interval in zip(comparisons, found, strict=True)
  }
  notes = [f'not tested: {"; ".join(reasons)}'] if reasons else []
  if once:
    notes.append(f'trained once, not in the intervals: {", ".join(once)}')
  return Claim(text, verdict, numbers, _of_paper(estimates), '; '.join(notes))


def holm(probabilities: Sequence[float]) -> np.ndarray:
  """Corrects probabilities for looking at all of them, float64[n].

  Below a level are exactly those that Holm's step-down procedure rejects at
  it: the smallest of n has to lie below the level / n, the next below the
  level / (n - 1), and so on.

  References:
    Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.
  """
  given = np.asarray(probabilities, float)
  order = np.argsort(given)
  steps = given[order] * np.arange(len(given), 0, -1)
  corrected = np.empty_like(given)
  corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
  return corrected


def _below_zero(estimates: Sequence[Estimate]) -> list[float]:
  """Two-sided probabilities of differences as far below 0; 1 of others."""

  def probability(value: float, chance: Chance) -> float:
    if value >= 0:
      return 1.0
    if not chance.above:
      return 0.0
    return float(2 * stats.t.sf(-value / chance.above, chance.freedom))

  return [
    probability(estimate.value, chance)
    for estimate, chance in zip(estimates, chances(estimates), strict=True)
  ]


def _of_paper(estimates: Sequence[Estimate]) -> str:
  """Judges the printed numbers, which have no intervals, by the same rule."""
  printed = [
    estimate.paper for estimate in estimates if estimate.paper is not None
  ]
  if not printed:
    return ''
  if min(printed) < 0:
    return 'did not'
  return 'held' if min(printed) > 0 else 'cannot tell'
