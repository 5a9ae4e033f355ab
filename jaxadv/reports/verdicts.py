"""Verdicts on claims, as comparisons that ought to be positive.

A claim held if every difference is positive with its whole interval, did not
if one is negative with its whole interval, and cannot be told otherwise.
Intervals are not corrected for the number of comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxadv.metrics.figures import Figure
from jaxadv.reports.record import Claim


class Comparison(NamedTuple):
  """A difference that ought to be positive.

  Attributes:
    text: What is compared, in words.
    figure: The difference, in points of AUC or accuracy.
  """

  text: str
  figure: Figure


def judge(text: str, comparisons: Sequence[Comparison]) -> Claim:
  """Gives the verdict on a claim.

  Args:
    text: The claim in one sentence.
    comparisons: What it rests on; none for what a run does not have.
  """
  intervals = [c.figure.interval for c in comparisons]
  if not comparisons:
    verdict = 'cannot tell'
  elif any(interval.high < 0 for interval in intervals):
    verdict = 'did not'
  elif all(interval.low > 0 for interval in intervals):
    verdict = 'held'
  else:
    verdict = 'cannot tell'
  numbers = {
    c.text: [round(number, 1) for number in (c.figure.value, *interval)]
    for c, interval in zip(comparisons, intervals, strict=True)
  }
  return Claim(text, verdict, numbers)
