"""Rows, printed numbers and pictures that several experiments leave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.gcd.protocol.setting import PAPER_DATASET, PAPER_NAME
from experiments.gcd.protocol.study import Study
from jaxadv.classifier import predict
from jaxadv.metrics import roc
from jaxadv.metrics.figures import Figure, over_trainings
from jaxadv.metrics.intervals import (
  Interval,
  auc_draws,
  share_draws,
  wilson,
)
from jaxadv.reports import Row, Table, figure_rows
from jaxadv.reports.record import FEW_PICTURES

AUC = 'AUC (%)'
ACCURACY = 'accuracy (%)'
RATE = 'success rate (%)'
NUM_EXAMPLES = 6


def printed(table: str) -> dict[tuple[str, ...], float]:
  """Reads a table of the paper: {(data set, line, column): number}.

  The lines of Table 1 are shares of removed pixels, those of the others
  attacks or 'Clean'.
  """
  path = Path(__file__).parents[1] / 'printed' / f'{table}.json'
  return {
    tuple(row['place']): row['value']
    for row in json.loads(path.read_text())['rows']
  }


def paper_dataset(study: Study) -> str:
  """Names the data set as the paper does, '' if it has another one."""
  return PAPER_DATASET.get(Path(study.config.dataset).name, '')


def auc_figure(
  study: Study,
  attack: str,
  clean: np.ndarray,
  attacked: np.ndarray,
  rows: np.ndarray | None = None,
) -> Figure:
  """Computes the AUC of clean test pictures against those of a success.

  Args:
    study: The study.
    attack: Which attack.
    clean: float[n], scores of the first n clean test pictures.
    attacked: float[n], of the attacked versions of the same pictures.
    rows: bool[N], which attacked pictures count; by default `succeeded`.

  Returns:
    The AUC in per cent.
  """
  sources = study.clean['test'].source[: len(clean)]
  rows = (succeeded(study, attack) if rows is None else rows)[: len(clean)]
  return auc_of_groups(clean, attacked[rows], sources, sources[rows])


def auc_of_groups(
  clean: np.ndarray,
  attacked: np.ndarray,
  clean_sources: np.ndarray,
  attacked_sources: np.ndarray,
) -> Figure:
  """Computes the AUC in per cent of two groups of scores."""
  scores = np.concatenate([clean, attacked])
  positive = np.arange(len(scores)) >= len(clean)
  draws = auc_draws(clean, attacked, clean_sources, attacked_sources)
  return Figure(100 * float(roc.auc(scores, positive)), 100 * draws)


def succeeded(study: Study, attack: str) -> np.ndarray:
  """Tells on which test pictures an attack had success, bool[N].

  Before rounding: a picture that rounding brings back is still an attacked
  one, and detectors are to find it.
  """
  return study.attacked[attack]['test'].success


def unprotected(study: Study, attack: str) -> np.ndarray:
  """Tells which attacked test pictures the victim still gets right, bool[N].

  After rounding, and by the true class: a targeted attack that misses its
  target may still mislead.
  """
  found = study.attacked[attack]['test'].images
  logits = predict(study.victim.classifier, found, study.config.batch_size)
  return logits.argmax(-1) == study.clean['test'].labels


def figure_row(
  keys: dict[str, Any],
  metric: str,
  figure: Figure,
  n: int,
) -> Row:
  """Makes the row of a figure."""
  low, high = figure.interval
  return Row(keys, metric, figure.value, low, high, n=n)


def share_figure(
  holds: np.ndarray, sources: np.ndarray, paper: float | None = None
) -> Figure:
  """Gives a share in per cent, with draws over the source pictures.

  Args:
    holds: bool[n], or bool[S, n] after each of S trainings.
    sources: int[n].
    paper: The printed number.
  """
  if holds.ndim == 2:
    each = [share_figure(own, sources) for own in holds]
    return over_trainings(each, paper=paper)
  (draws,) = share_draws([holds], [sources])
  return Figure(100 * float(np.mean(holds)), 100 * draws, paper=paper)


def share_rows(
  keys: Sequence[dict[str, Any]],
  metric: str,
  figures: Sequence[Figure],
  numbers: Sequence[int],
) -> list[Row]:
  """Makes the rows of a table of shares: Wilson's interval, and training.

  Args:
    keys: Of each row.
    metric: Of all of them.
    figures: Shares in per cent, with the printed numbers.
    numbers: Test pictures behind each.
  """
  sampling = [
    Interval(*(100 * end for end in wilson(round(f.value * n / 100), n)))
    for f, n in zip(figures, numbers, strict=True)
  ]
  return figure_rows(keys, metric, figures, numbers, sampling)


def share_row(
  keys: dict[str, Any],
  metric: str,
  holds: np.ndarray,
  paper: float | None = None,
) -> Row:
  """Makes the row of a share in per cent, with Wilson's interval."""
  return count_row(keys, metric, int(np.sum(holds)), len(holds), paper)


def count_row(
  keys: dict[str, Any],
  metric: str,
  count: int,
  n: int,
  paper: float | None = None,
) -> Row:
  """Makes the same of a count of n."""
  low, high = wilson(count, n)
  return Row(keys, metric, 100 * count / n, 100 * low, 100 * high, n, paper)


def picture_rows(study: Study) -> list[Row]:
  """Gives accuracy of the victim, success of the attacks and their size."""
  n = len(study.heldout.labels)
  rows = [
    count_row(
      {'role': 'victim', 'pictures': 'held-out'},
      ACCURACY,
      round(study.victim.accuracy * n),  # Known since it was trained.
      n,
    )
  ]
  for attack, sides in study.attacked.items():
    found = sides['test']
    keys = {'role': 'attack', 'attack': PAPER_NAME[attack]}
    rows += [
      share_row(keys | {'judged': 'float'}, RATE, found.success),
      share_row(keys | {'judged': '8 bit'}, RATE, found.success_uint8),
    ]
    for norm in ('l2', 'linf'):
      sizes = getattr(found, norm)[found.success]
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


def doubts(study: Study) -> list[str]:
  """Says which attacks are too weak, or too rare, for what rests on them."""
  found = {attack: sides['test'] for attack, sides in study.attacked.items()}
  sentences = []
  for costly, cheap in (('cw', 'ddn'), ('cw_t', 'ddn_t')):
    if not {costly, cheap} <= found.keys():
      continue
    both = found[costly].success & found[cheap].success
    if not both.any():
      continue
    sizes = [
      float(np.median(found[attack].l2[both])) for attack in (costly, cheap)
    ]
    if sizes[0] > sizes[1]:
      sentences.append(
        f'{PAPER_NAME[costly]} is not at its strongest: its median change in '
        f'L2 is {sizes[0]:.3f} where that of {PAPER_NAME[cheap]} is '
        f'{sizes[1]:.3f}, on the {both.sum()} test pictures on which both have '
        'success; give it more --cw_searches or --cw_steps.'
      )
  rare = [
    f'{PAPER_NAME[attack]} on {side.success.sum()}'
    for attack, side in found.items()
    if side.success.sum() < FEW_PICTURES
  ]
  if rare:
    sentences.append(
      f'Attacks with success on fewer than {FEW_PICTURES} of '
      f'{study.config.num_test} test pictures: {", ".join(rare)}.'
    )
  return sentences


def picture_tables(study: Study) -> list[Table]:
  """Lays out `picture_rows`."""
  names = columns(study, study.config.attacks)
  return [
    Table(
      'Accuracy of the victim',
      ACCURACY,
      ('role',),
      'pictures',
      where={'role': 'victim'},
    ),
    Table(
      'Success of the attacks on pictures that are classified correctly',
      RATE,
      ('judged',),
      'attack',
      columns=names,
      where={'role': 'attack'},
      note='8 bit: after rounding the pictures, as they are used everywhere.',
    ),
    Table(
      'Size of successful changes',
      'median size of the change',
      ('judged',),
      'attack',
      columns=names,
      where={'role': 'attack'},
      note='In image units, before rounding.',
      decimals=3,
    ),
  ]


def columns(study: Study, attacks: Sequence[str]) -> tuple[str, ...]:
  """Names attacks as the paper does, in its order."""
  return tuple(name for a, name in PAPER_NAME.items() if a in attacks)
