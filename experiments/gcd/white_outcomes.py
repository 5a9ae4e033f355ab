"""What the white-box attacks came to: success and the sizes it took."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common.tables import RATE
from experiments.gcd import report, white_box
from experiments.gcd.config import PAPER_NAME
from experiments.gcd.pictures import RunInputs
from experiments.gcd.white_box import (
  ACTIVE_DETECTORS,
  AttackRun,
  Judged,
  WhiteBox,
  runs_of,
)
from jaxadv.metrics.estimates import (
  Estimate,
  combine,
  over_trainings,
  share_estimates,
)
from jaxadv.metrics.intervals import Interval, share_interval
from jaxadv.reports import Row
from jaxadv.reports.rows import estimate_rows

# With a budget and of minimal norm: those tried on what is costly.
PROBES = ('pgd', 'ddn')
# Attacks whose sizes Table 4 compares, and the guards it compares them under.
SIZED = ('ddn', 'ddn_t', 'carlini_wagner', 'carlini_wagner_t')
COMPARED = ('no detector', 'GCD')
PRINTED_SIZE = dict(
  zip(COMPARED, ('without detector', 'with GCD'), strict=True)
)


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
  white: WhiteBox,
  attack: str,
  active: str,
  arrays: dict[str, np.ndarray],
  part: str,
) -> Outcome:
  """Judges one part of a cell's result as if `active` stood guard."""
  targets = white.targets if attack.endswith('_t') else None

  def success(suffix):
    found = Judged(
      arrays[f'{part}/predicted{suffix}'], arrays[f'{part}/logits{suffix}']
    )
    return white_box.succeeded(found, active, white.pictures.labels, targets)

  return Outcome(
    success('')[white.unflagged_when_clean],
    success('_uint8')[white.unflagged_when_clean],
    arrays[f'{part}/l2'][white.unflagged_when_clean],
  )


# By attack and turn.
AttackRuns = dict[tuple[str, AttackRun], Outcome]


class Outcomes(NamedTuple):
  """What all attacks came to.

  Attributes:
    single: {(attack, turn): outcome} of attacks that know the guard.
    informed: The same, with the better of them and of the blind one for each
      picture; what PGD-U finds within a smaller budget counts within a larger
      one.
    blind: {(attack, turn): outcome} of those that do not know the guard.
    plain: {attack: outcome} against DET_IS with the plain gradient.
    pipeline: {attack: {way: bool[n]}}, success against the whole defence.
    sources: int32[n], of the pictures.
    training: int[n], which training each picture met.
  """

  single: AttackRuns
  adaptive: AttackRuns
  oblivious: AttackRuns
  plain: dict[str, Outcome]
  pipeline: dict[str, dict[str, np.ndarray]]
  sources: np.ndarray
  training: np.ndarray

  def rate(self, success: np.ndarray, paper: float | None = None) -> Estimate:
    """Gives the mean success of the trainings in per cent, bool[n]."""
    shares = [success[own] for own in self._rows]
    sources = [self.sources[own] for own in self._rows]
    estimates = share_estimates(shares, sources)
    return over_trainings(estimates, apart=True, paper=paper)

  def median(
    self, sizes: np.ndarray, rows: np.ndarray, paper: float | None = None
  ) -> Estimate:
    """Gives the median size of some of the pictures, float64[n] and bool[n].

    All medians of the same pictures have the same resamples.
    """
    sizes = sizes.astype(np.float64)
    n = int(rows.sum())
    draws = np.random.default_rng(0).integers(n, size=(1000, n))
    own = [sizes[each & rows] for each in self._rows if (each & rows).any()]
    return Estimate(
      float(np.median(sizes[rows])),
      np.median(sizes[rows][draws], axis=1),
      tuple(float(np.median(part)) for part in own),
      apart=True,
      paper=paper,
    )

  @property
  def _rows(self) -> list[np.ndarray]:
    """The pictures of each training that has some, bool[n] each."""
    return [self.training == number for number in np.unique(self.training)]


def outcomes_of(
  inputs: RunInputs, white: WhiteBox, found: dict[str, Any]
) -> Outcomes:
  """Judges the results of all cells."""
  single, oblivious = {}, {}
  for attack in inputs.config.attack_names:
    attack_runs = runs_of(attack)
    for number, attack_run in enumerate(attack_runs):
      judge = lambda number, active, attack=attack: outcome_of(
        white, attack, active, found[attack], str(number)
      )
      single[attack, attack_run] = judge(number, attack_run.active)
      if attack_run.divisor == 1:
        unaware = attack_runs.index(attack_run._replace(active='no detector'))
        oblivious[attack, attack_run] = judge(unaware, attack_run.active)
  adaptive = {
    key: better(outcome, oblivious.get(key, outcome))
    for key, outcome in single.items()
  }
  adaptive = nested(adaptive)
  plain, pipeline = {}, {}
  for attack in [a for a in PROBES if a in inputs.config.attack_names]:
    plain[attack] = outcome_of(
      white, attack, 'DET_IS', found['second_order'], attack
    )
    voted = found['pipeline'][f'{attack}/voted'] != white.pictures.labels
    past = adaptive[attack, AttackRun('GCD')].success
    through = voted[white.unflagged_when_clean]
    pipeline[attack] = dict(past=past, through=through, either=past | through)
  return Outcomes(
    single,
    adaptive,
    oblivious,
    plain,
    pipeline,
    white.pictures.source[white.unflagged_when_clean],
    white.training[white.unflagged_when_clean],
  )


def better(first: Outcome, second: Outcome) -> Outcome:
  """Keeps of two attacks on the same pictures the success, or the smaller."""
  kept = first.success & ~(second.success & (second.l2 < first.l2))
  return Outcome(
    first.success | second.success,
    first.success_uint8 | second.success_uint8,
    np.where(kept, first.l2, second.l2),
  )


def budget_steps(attack_runs: AttackRuns) -> list[tuple[AttackRun, AttackRun]]:
  """Pairs each budget of PGD-U with the next larger one, smallest first."""
  own = sorted(
    (
      attack_run
      for attack, attack_run in attack_runs
      if attack == 'pgd' and attack_run.divisor == 1
    ),
    key=lambda attack_run: attack_run.share,
  )
  return [
    step
    for active in ACTIVE_DETECTORS
    for step in itertools.pairwise(
      attack_run for attack_run in own if attack_run.active == active
    )
  ]


def nested(attack_runs: AttackRuns) -> AttackRuns:
  """Counts what PGD-U finds in a small ball in the larger ones around it."""
  attack_runs = dict(attack_runs)
  for smaller, larger in budget_steps(attack_runs):
    attack_runs['pgd', larger] = better(
      attack_runs['pgd', smaller], attack_runs['pgd', larger]
    )
  return attack_runs


class Pair(NamedTuple):
  """Medians over the pictures on which an attack always had success.

  Attributes:
    medians: {active: median L2}, without detector and with the ensemble.
    n: Number of these pictures.
  """

  medians: dict[str, Estimate]
  n: int

  @property
  def ratio(self) -> Estimate:
    """With the ensemble over without, draw by draw."""
    free, guarded = (self.medians[active] for active in COMPARED)
    return combine(np.divide, guarded, free)


def sizes_of(inputs: RunInputs, outcomes: Outcomes) -> dict[str, Pair]:
  """Compares sizes of changes; leaves attacks out that never succeed twice."""
  printed = report.printed('table4')
  pairs = {}
  for attack in [a for a in SIZED if a in inputs.config.attack_names]:
    own = {
      active: outcomes.adaptive[attack, AttackRun(active)]
      for active in COMPARED
    }
    both = np.all([outcome.success for outcome in own.values()], axis=0)
    if both.any():
      place = (report.paper_dataset(inputs), PAPER_NAME[attack])
      medians = {
        active: outcomes.median(
          outcome.l2, both, printed.get((*place, PRINTED_SIZE[active]))
        )
        for active, outcome in own.items()
      }
      pairs[attack] = Pair(medians, int(both.sum()))
  return pairs


def rate_rows(
  outcomes: Outcomes,
  measured: Sequence[tuple[dict[str, Any], np.ndarray]],
  paper: Sequence[float | None] | None = None,
) -> list[Row]:
  """Makes the rows of a table of success rates.

  Args:
    outcomes: That they belong to.
    measured: Keys and bool[n] of each row.
    paper: The printed number of each.

  Returns:
    A row each; the sampling part of intervals is Wilson's.
  """
  n = len(outcomes.sources)
  estimates = [
    outcomes.rate(success, number)
    for (_, success), number in zip(
      measured, paper or [None] * len(measured), strict=True
    )
  ]
  sampling = [share_interval(int(success.sum()), n) for _, success in measured]
  return guard_rows(
    [keys for keys, _ in measured],
    RATE,
    estimates,
    [n] * len(measured),
    sampling,
  )


def guard_rows(
  keys: Sequence[dict[str, Any]],
  metric: str,
  estimates: Sequence[Estimate],
  numbers: Sequence[int],
  sampling: Sequence[Interval] | None = None,
) -> list[Row]:
  """Makes rows as `figure_rows` does, but pools over those of one guard alone.

  Training moves one guard more than others. Rows without one are together.
  """
  groups: dict[str, list[int]] = {}
  for row, own in enumerate(keys):
    groups.setdefault(own.get('guard', ''), []).append(row)
  rows = []
  for group in groups.values():
    pick = lambda values, group=group: [values[row] for row in group]
    rows += estimate_rows(
      pick(keys),
      metric,
      pick(estimates),
      pick(numbers),
      sampling and pick(sampling),
    )
  return rows


def last_doubling(outcomes: Outcomes, attack: str) -> tuple[Outcome, Outcome]:
  """Gives an attack on the ensemble with half of the steps, and with all."""
  half, whole = (
    outcomes.single[attack, AttackRun('GCD', divisor=divisor)]
    for divisor in (2, 1)
  )
  return half, whole


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
