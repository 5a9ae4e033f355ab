"""What the white-box attacks came to: success and the sizes it took."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.gcd.protocol import adaptive
from experiments.gcd.protocol.adaptive import (
  FORMS,
  Judged,
  Turn,
  White,
  turns_of,
)
from experiments.gcd.protocol.study import Study
from jaxadv.metrics.figures import Figure

# With a budget and of minimal norm: those tried on what is costly.
PROBES = ('pgd', 'ddn')
# Attacks whose sizes Table 4 compares, and the guards it compares them under.
SIZED = ('ddn', 'ddn_t', 'cw', 'cw_t')
COMPARED = ('no detector', 'GCD')


class Outcome(NamedTuple):
  """What an attack came to on the pictures that are quiet when clean.

  Attributes:
    success: bool[n].
    success_uint8: bool[n], after rounding.
    l2: float64[n].
  """

  success: np.ndarray
  success_uint8: np.ndarray
  l2: np.ndarray


def outcome_of(
  white: White, attack: str, form: str, arrays: dict[str, np.ndarray], part: str
) -> Outcome:
  """Judges one part of a cell's result as if `form` stood guard."""
  targets = white.targets if attack.endswith('_t') else None

  def success(suffix):
    found = Judged(
      arrays[f'{part}/predicted{suffix}'], arrays[f'{part}/logits{suffix}']
    )
    return adaptive.succeeded(found, form, white.pictures.labels, targets)

  return Outcome(
    success('')[white.quiet],
    success('_uint8')[white.quiet],
    arrays[f'{part}/l2'][white.quiet],
  )


# By attack and turn.
Turns = dict[tuple[str, Turn], Outcome]


class Outcomes(NamedTuple):
  """What all attacks came to.

  Attributes:
    single: {(attack, turn): outcome} of attacks that know the guard.
    informed: The same, but what PGD-U finds within a smaller budget counts
      within a larger one.
    blind: {(attack, form): outcome} of those that do not.
    plain: {attack: outcome} against DET_IS with the plain gradient.
    pipeline: {attack: {way: bool[n]}}, success against the whole defence.
    sources: int32[n], of the pictures.
  """

  single: Turns
  informed: Turns
  blind: dict[tuple[str, str], Outcome]
  plain: dict[str, Outcome]
  pipeline: dict[str, dict[str, np.ndarray]]
  sources: np.ndarray


def outcomes_of(study: Study, white: White, found: dict[str, Any]) -> Outcomes:
  """Judges the results of all cells."""
  single, blind = {}, {}
  for attack in study.config.attacks:
    for number, turn in enumerate(turns_of(attack)):
      single[attack, turn] = outcome_of(
        white, attack, turn.form, found[attack], str(number)
      )
      if turn == Turn('no detector'):
        for form in FORMS:
          blind[attack, form] = outcome_of(
            white, attack, form, found[attack], str(number)
          )
  informed = nested(single)
  plain, pipeline = {}, {}
  for attack in [a for a in PROBES if a in study.config.attacks]:
    plain[attack] = outcome_of(
      white, attack, 'DET_IS', found['second_order'], attack
    )
    voted = found['pipeline'][f'{attack}/voted'] != white.pictures.labels
    past = informed[attack, Turn('GCD')].success
    through = voted[white.quiet]
    pipeline[attack] = dict(past=past, through=through, either=past | through)
  sources = white.pictures.source[white.quiet]
  return Outcomes(single, informed, blind, plain, pipeline, sources)


def budget_steps(turns: Turns) -> list[tuple[Turn, Turn]]:
  """Pairs each budget of PGD-U with the next larger one, smallest first."""
  own = sorted(
    (turn for attack, turn in turns if attack == 'pgd'),
    key=lambda turn: turn.share,
  )
  return [
    step
    for form in FORMS
    for step in itertools.pairwise(turn for turn in own if turn.form == form)
  ]


def nested(turns: Turns) -> Turns:
  """Counts what PGD-U finds in a small ball in the larger ones around it."""
  turns = dict(turns)
  for smaller, larger in budget_steps(turns):
    first, second = turns['pgd', smaller], turns['pgd', larger]
    turns['pgd', larger] = Outcome(
      first.success | second.success,
      first.success_uint8 | second.success_uint8,
      np.where(first.success, first.l2, second.l2),
    )
  return turns


class Pair(NamedTuple):
  """Medians over the pictures on which an attack always had success.

  Attributes:
    medians: {form: median L2}, without detector and with the ensemble.
    n: Number of these pictures.
  """

  medians: dict[str, Figure]
  n: int

  @property
  def ratio(self) -> Figure:
    """With the ensemble over without, draw by draw."""
    free, guarded = (self.medians[form] for form in COMPARED)
    return Figure(guarded.value / free.value, guarded.draws / free.draws)


def sizes_of(study: Study, outcomes: Outcomes) -> dict[str, Pair]:
  """Compares sizes of changes; leaves attacks out that never succeed twice."""
  pairs = {}
  for attack in [a for a in SIZED if a in study.config.attacks]:
    own = {form: outcomes.informed[attack, Turn(form)] for form in COMPARED}
    both = np.all([outcome.success for outcome in own.values()], axis=0)
    if both.any():
      medians = paired_medians([o.l2[both] for o in own.values()])
      pairs[attack] = Pair(
        dict(zip(own, medians, strict=True)), int(both.sum())
      )
  return pairs


def paired_medians(
  columns: Sequence[np.ndarray], num: int = 1000, seed: int = 0
) -> list[Figure]:
  """Takes medians with draws over the rows, the same ones in all columns.

  Args:
    columns: float64[n] each, n at least 1; row i is always the same picture.
    num: Number of resamples.
    seed: Of the random draws.
  """
  n = len(columns[0])
  rows = np.random.default_rng(seed).integers(n, size=(num, n))
  return [
    Figure(float(np.median(column)), np.median(column[rows], axis=1))
    for column in columns
  ]


def masked(smooth: Outcome, plain: Outcome, *, sized: bool) -> bool:
  """Tells whether an attack with the smooth gradient fails to beat the plain.

  Args:
    smooth: What it came to with the smooth gradient.
    plain: With the plain one.
    sized: Whether of equal success the smaller changes win; without it, all
      that can be had is success on every picture.
  """
  if smooth.success.sum() != plain.success.sum():
    return bool(smooth.success.sum() < plain.success.sum())
  if not sized or not smooth.success.any():
    return not smooth.success.all()
  medians = [np.median(own.l2[own.success]) for own in (smooth, plain)]
  return bool(medians[0] >= medians[1])


def summary(outcome: Outcome) -> str:
  """Writes success, and the size that it took, in a few words."""
  text = f'{outcome.success.sum()} of {len(outcome.success)} pictures'
  if outcome.success.any():
    text += f', median L2 {np.median(outcome.l2[outcome.success]):.2f}'
  return text
