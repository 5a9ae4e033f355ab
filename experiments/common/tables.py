"""Rows and tables of every paper: networks, attacks, printed numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.networks import Network
from jaxadv.metrics.estimates import Estimate
from jaxadv.reports import Row, Table, count_row, share_row
from jaxadv.reports.rows import FEW_PICTURES
from jaxadv.sets.types import AdversarialSet

AUC = 'AUC (%)'
ACCURACY = 'accuracy (%)'
RATE = 'success rate (%)'
SIZE = 'median size of the change'


def printed_numbers(paper: str, table: str) -> dict[tuple[str, ...], float]:
  """Reads numbers that a paper prints.

  Args:
    paper: Folder of the paper's experiments, in which `printed/TABLE.json`
      lies: `{"rows": [{"place": [...], "value": number}]}`.
    table: Name of the table.

  Returns:
    {place: number}; what a place is made of says the file.
  """
  path = Path(paper) / 'printed' / f'{table}.json'
  return {
    tuple(row['place']): row['value']
    for row in json.loads(path.read_text())['rows']
  }


def estimate_row(
  labels: Mapping[str, Any], metric: str, estimate: Estimate, n: int
) -> Row:
  """Makes the row of an estimate that shares its table with no other."""
  low, high = estimate.interval
  return Row(labels, metric, estimate.value, low, high, n=n)


def victim_row(victim: Network, num_heldout: int) -> Row:
  """Makes the row of the accuracy of a victim, known since it was trained."""
  return count_row(
    {'role': 'victim', 'pictures': 'held-out'},
    ACCURACY,
    round((victim.accuracy or 0) * num_heldout),
    num_heldout,
  )


def attack_rows(attacked: Mapping[str, AdversarialSet]) -> list[Row]:
  """Gives success of attacks before and after rounding, and sizes of changes.

  Args:
    attacked: {name as tables show it: test pictures}.
  """
  rows = []
  for name, found in attacked.items():
    labels = {'role': 'attack', 'attack': name}
    rows += [
      share_row(labels | {'judged': 'float'}, RATE, found.success_float),
      share_row(labels | {'judged': '8 bit'}, RATE, found.success),
    ]
    for norm in ('l2', 'linf'):
      sizes = getattr(found, norm)[found.success_float]
      if len(sizes):
        rows.append(
          Row(
            labels | {'judged': norm},
            SIZE,
            float(np.median(sizes)),
            n=len(sizes),
          )
        )
  return rows


def rare_attacks(
  attacked: Mapping[str, AdversarialSet], num_test: int
) -> list[str]:
  """Says which attacks succeed too rarely for what rests on them."""
  counts = {name: found.success_float.sum() for name, found in attacked.items()}
  rare = [f'{name} on {n}' for name, n in counts.items() if n < FEW_PICTURES]
  if not rare:
    return []
  return [
    f'Attacks with success on fewer than {FEW_PICTURES} of {num_test} test '
    f'pictures: {", ".join(rare)}.'
  ]


def attack_tables(columns: Sequence[str]) -> list[Table]:
  """Lays out `victim_row` and `attack_rows`.

  Args:
    columns: Names of the attacks, in order.
  """
  return [
    Table(
      'Accuracy of the victim',
      ACCURACY,
      ('role',),
      'pictures',
      filters={'role': 'victim'},
    ),
    Table(
      'Success of the attacks on pictures that are classified correctly',
      RATE,
      ('judged',),
      'attack',
      columns=tuple(columns),
      filters={'role': 'attack'},
      note='8 bit: after rounding the pictures, as they are used everywhere.',
    ),
    Table(
      'Size of successful changes',
      SIZE,
      ('judged',),
      'attack',
      columns=tuple(columns),
      filters={'role': 'attack'},
      note='In image units, before rounding.',
      decimals=3,
    ),
  ]
