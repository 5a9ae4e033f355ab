"""Rows, printed numbers and pictures that several experiments leave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.common.tables import (
  attack_rows,
  attack_tables,
  printed_numbers,
  rare_attacks,
  victim_row,
)
from experiments.gcd.config import PAPER_DATASET, PAPER_NAME
from experiments.gcd.pictures import RunInputs
from jaxadv.classifier import predict
from jaxadv.metrics.estimates import Estimate, auc_estimate
from jaxadv.reports import Row, Table
from jaxadv.sets.types import AdversarialSet

NUM_EXAMPLES = 6


def printed(table: str) -> dict[tuple[str, ...], float]:
  """Reads a table of the paper: {(data set, line, column): number}.

  The lines of Table 1 are shares of removed pixels, those of the others
  attacks or 'Clean'.
  """
  return printed_numbers(str(Path(__file__).parent), table)


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


def picture_rows(inputs: RunInputs) -> list[Row]:
  """Gives accuracy of the victim, success of the attacks and their size."""
  victim = victim_row(inputs.victim, len(inputs.heldout.labels))
  return [victim, *attack_rows(shown_sets(inputs))]


def shown_sets(inputs: RunInputs) -> dict[str, AdversarialSet]:
  """Gives the attacked test pictures by the paper's names of the attacks."""
  return {
    PAPER_NAME[attack]: sides['test']
    for attack, sides in inputs.attacked.items()
  }


def doubts(inputs: RunInputs) -> list[str]:
  """Says which attacks are too weak, or too rare, for what rests on them."""
  found = shown_sets(inputs)
  sentences = []
  for costly, cheap in (('CW-U', 'DDN-U'), ('CW-T', 'DDN-T')):
    if not {costly, cheap} <= found.keys():
      continue
    both = found[costly].success_float & found[cheap].success_float
    if not both.any():
      continue
    sizes = [
      float(np.median(np.asarray(found[name].l2)[both]))
      for name in (costly, cheap)
    ]
    if sizes[0] > sizes[1]:
      sentences.append(
        f'{costly} is not at its strongest: its median change in L2 is '
        f'{sizes[0]:.3f} where that of {cheap} is {sizes[1]:.3f}, on the '
        f'{both.sum()} test pictures on which both have success; give it more '
        'binary_search_steps or num_steps.'
      )
  return sentences + rare_attacks(found, inputs.config.num_test)


def picture_tables(inputs: RunInputs) -> list[Table]:
  """Lays out `picture_rows`."""
  return attack_tables(columns(inputs, inputs.config.attack_names))


def columns(inputs: RunInputs, attacks: Sequence[str]) -> tuple[str, ...]:
  """Names attacks as the paper does, in its order."""
  return tuple(name for a, name in PAPER_NAME.items() if a in attacks)
