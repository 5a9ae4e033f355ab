"""Rows, printed numbers and pictures that several experiments leave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.gcd.config import PAPER_DATASET, PAPER_NAME
from experiments.gcd.pictures import RunInputs
from jaxadv.classifier import predict
from jaxadv.metrics.estimates import Estimate, auc_estimate
from jaxadv.reports import Row, Table, count_row, share_row
from jaxadv.reports.rows import FEW_PICTURES

AUC = 'AUC (%)'
ACCURACY = 'accuracy (%)'
RATE = 'success rate (%)'
NUM_EXAMPLES = 6


def printed(table: str) -> dict[tuple[str, ...], float]:
  """Reads a table of the paper: {(data set, line, column): number}.

  The lines of Table 1 are shares of removed pixels, those of the others
  attacks or 'Clean'.
  """
  path = Path(__file__).parent / 'printed' / f'{table}.json'
  return {
    tuple(row['place']): row['value']
    for row in json.loads(path.read_text())['rows']
  }


def paper_dataset(inputs: RunInputs) -> str:
  """Names the data set as the paper does, '' if it has another one."""
  return PAPER_DATASET.get(Path(inputs.config.dataset).name, '')


def attack_auc(
  inputs: RunInputs,
  attack: str,
  clean: np.ndarray,
  attacked: np.ndarray,
  rows: np.ndarray | None = None,
) -> Estimate:
  """Computes the AUC of clean test pictures against those of a success.

  Args:
    inputs: The inputs of the run.
    attack: Which attack.
    clean: float[n], scores of the first n clean test pictures.
    attacked: float[n], of the attacked versions of the same pictures.
    rows: bool[N], which attacked pictures count; by default `succeeded`.

  Returns:
    The AUC in per cent.
  """
  sources = inputs.clean['test'].source[: len(clean)]
  rows = (succeeded(inputs, attack) if rows is None else rows)[: len(clean)]
  return auc_estimate(clean, attacked[rows], sources, sources[rows])


def succeeded(inputs: RunInputs, attack: str) -> np.ndarray:
  """Tells on which test pictures an attack had success, bool[N].

  Before rounding: a picture that rounding brings back is still an attacked
  one, and detectors are to find it.
  """
  return inputs.attacked[attack]['test'].success_float


def unprotected(inputs: RunInputs, attack: str) -> np.ndarray:
  """Tells which attacked test pictures the victim still gets right, bool[N].

  After rounding, and by the true class: a targeted attack that misses its
  target may still mislead.
  """
  found = inputs.attacked[attack]['test'].images
  logits = predict(inputs.victim.classifier, found, inputs.config.batch_size)
  return logits.argmax(-1) == inputs.clean['test'].labels


def estimate_row(
  keys: dict[str, Any],
  metric: str,
  estimate: Estimate,
  n: int,
) -> Row:
  """Makes the row of a figure."""
  low, high = estimate.interval
  return Row(keys, metric, estimate.value, low, high, n=n)


def picture_rows(inputs: RunInputs) -> list[Row]:
  """Gives accuracy of the victim, success of the attacks and their size."""
  n = len(inputs.heldout.labels)
  rows = [
    count_row(
      {'role': 'victim', 'pictures': 'held-out'},
      ACCURACY,
      # Known since it was trained.
      round((inputs.victim.accuracy or 0) * n),
      n,
    )
  ]
  for attack, sides in inputs.attacked.items():
    found = sides['test']
    keys = {'role': 'attack', 'attack': PAPER_NAME[attack]}
    rows += [
      share_row(keys | {'judged': 'float'}, RATE, found.success_float),
      share_row(keys | {'judged': '8 bit'}, RATE, found.success),
    ]
    for norm in ('l2', 'linf'):
      sizes = getattr(found, norm)[found.success_float]
      if len(sizes):
        rows.append(
          Row(
            keys | {'judged': norm},
            'median size of the change',
            float(np.median(sizes)),
            n=len(sizes),
          )
        )
  return rows


def doubts(inputs: RunInputs) -> list[str]:
  """Says which attacks are too weak, or too rare, for what rests on them."""
  found = {attack: sides['test'] for attack, sides in inputs.attacked.items()}
  sentences = []
  for costly, cheap in (
    ('carlini_wagner', 'ddn'),
    ('carlini_wagner_t', 'ddn_t'),
  ):
    if not {costly, cheap} <= found.keys():
      continue
    both = found[costly].success_float & found[cheap].success_float
    if not both.any():
      continue
    sizes = [
      float(np.median(np.asarray(found[attack].l2)[both]))
      for attack in (costly, cheap)
    ]
    if sizes[0] > sizes[1]:
      sentences.append(
        f'{PAPER_NAME[costly]} is not at its strongest: its median change in '
        f'L2 is {sizes[0]:.3f} where that of {PAPER_NAME[cheap]} is '
        f'{sizes[1]:.3f}, on the {both.sum()} test pictures on which both have '
        'success; give it more binary_search_steps or num_steps.'
      )
  rare = [
    f'{PAPER_NAME[attack]} on {side.success_float.sum()}'
    for attack, side in found.items()
    if side.success_float.sum() < FEW_PICTURES
  ]
  if rare:
    sentences.append(
      f'Attacks with success on fewer than {FEW_PICTURES} of '
      f'{inputs.config.num_test} test pictures: {", ".join(rare)}.'
    )
  return sentences


def picture_tables(inputs: RunInputs) -> list[Table]:
  """Lays out `picture_rows`."""
  names = columns(inputs, inputs.config.attack_names)
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
      columns=names,
      filters={'role': 'attack'},
      note='8 bit: after rounding the pictures, as they are used everywhere.',
    ),
    Table(
      'Size of successful changes',
      'median size of the change',
      ('judged',),
      'attack',
      columns=names,
      filters={'role': 'attack'},
      note='In image units, before rounding.',
      decimals=3,
    ),
  ]


def columns(inputs: RunInputs, attacks: Sequence[str]) -> tuple[str, ...]:
  """Names attacks as the paper does, in its order."""
  return tuple(name for a, name in PAPER_NAME.items() if a in attacks)
