"""Compares the figures of two runs: does each lie in the other's interval?

Whoever repeats a run, on another machine or from fresh trainings, gets other
numbers. This tells whether they differ by more than their intervals say:

  python -m jaxadv.reports.compare RUN OTHER --by=backbone
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NamedTuple

import numpy as np

from jaxadv.errors import DataError, UserError
from jaxadv.reports.record import Record, read
from jaxadv.reports.rows import Row


class Agreement(NamedTuple):
  """How two runs agree on a group of figures.

  Attributes:
    group: Value of the label that figures are grouped by.
    metric: Of the figures.
    n: Number of figures with intervals in both runs.
    inside: Share of them of which each lies in the other's interval.
    equal: Share of them that are the same number.
    furthest: Largest difference in combined half widths of both intervals,
      (w1**2 + w2**2)**0.5.
    labels: Those of that figure.
  """

  group: str
  metric: str
  n: int
  inside: float
  equal: float
  furthest: float
  labels: dict[str, Any]


def compare(first: Record, second: Record, by: str = '') -> list[Agreement]:
  """Compares the rows that two runs have in common.

  Args:
    first: A run.
    second: Another one of the same experiment.
    by: Label to group rows by; rows without it, and all if it is empty, form
      one group a metric.

  Returns:
    A line for each metric and group.

  Raises:
    UserError: If no row with an interval is in both.
  """
  others = {_place(row): row for row in second.rows}
  groups: dict[tuple[str, str], list[tuple[Row, Row]]] = {}
  for row in first.rows:
    other = others.get(_place(row))
    if other and None not in (row.ci_low, other.ci_low):
      group = (row.metric, str(row.labels.get(by, '')))
      groups.setdefault(group, []).append((row, other))
  if not groups:
    raise UserError(
      f'the runs of {first.experiment} and {second.experiment} have no row '
      'with an interval in common; give two runs of one experiment'
    )
  return [_agreement(*place, pairs) for place, pairs in groups.items()]


def _place(row: Row) -> tuple[str, frozenset]:
  return row.metric, frozenset((k, str(v)) for k, v in row.labels.items())


def _agreement(
  metric: str, group: str, pairs: list[tuple[Row, Row]]
) -> Agreement:
  # float64[value, low and high; run; figure]
  numbers = np.array(
    [[(r.value, r.ci_low, r.ci_high) for r in pair] for pair in pairs]
  ).transpose(2, 1, 0)
  value, low, high = numbers
  inside = (low[::-1] <= value) & (value <= high[::-1])
  apart = np.abs(value[0] - value[1])
  reach = np.hypot(*(high - low) / 2)
  steps = np.divide(
    apart, reach, out=np.where(apart > 0, np.inf, 0.0), where=reach > 0
  )
  return Agreement(
    group,
    metric,
    len(pairs),
    float(inside.all(axis=0).mean()),
    float((apart == 0).mean()),
    float(steps.max()),
    dict(pairs[int(steps.argmax())][0].labels),
  )


def main(arguments: list[str] | None = None) -> int:
  """Prints how two runs agree.

  Args:
    arguments: Of the command line.

  Returns:
    The exit code.
  """
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('run', help='folder of a finished run')
  parser.add_argument('other', help='folder of another one')
  parser.add_argument('--by', default='', help='key to group by: backbone, ...')
  given = parser.parse_args(arguments)
  try:
    found = compare(read(given.run)[0], read(given.other)[0], given.by)
  except (DataError, UserError) as error:
    print(error, file=sys.stderr)
    return 2
  for line in found:
    labels = ', '.join(str(value) for value in line.labels.values())
    print(
      f'{line.metric} {line.group}: {line.n} figures, {line.inside:.1%} in '
      f"each other's intervals, {line.equal:.1%} equal; furthest off "
      f'{line.furthest:.2f} half widths ({labels})'
    )
  return 0


if __name__ == '__main__':
  sys.exit(main())
