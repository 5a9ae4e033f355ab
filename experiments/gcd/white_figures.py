"""Figures of the white box: success within budgets, changed pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.common.tables import RATE
from experiments.gcd import report, white_box
from experiments.gcd.config import MINIMAL, PAPER_NAME
from experiments.gcd.pictures import RunInputs
from experiments.gcd.white_box import (
  ACTIVE_DETECTORS,
  DIVISORS,
  STEPPED,
  AttackRun,
  Judged,
  WhiteBox,
  steps_of,
)
from experiments.gcd.white_outcomes import Outcomes
from jaxadv.metrics.intervals import share_interval
from jaxadv.reports import Plot

NUM_BUDGETS = 60
# Guards of the paper's Table 3, whose pictures its Figure 5 shows.
SHOWN = ('no detector', 'DET_IS', 'GCD')
# Of the curves over the number of steps.
ANY_SIZE, SMALL = 'success', 'success within the median L2 of the last point'


def curves_of(inputs: RunInputs, outcomes: Outcomes) -> dict[str, np.ndarray]:
  """Counts success within budgets: {name: float64[4, P]} for `plots.curves`."""
  curves = {}
  for attack in inputs.config.attack_names:
    own = {
      attack_run: outcome
      for (name, attack_run), outcome in outcomes.adaptive.items()
      if name == attack and attack_run.divisor == 1
    }
    if attack in MINIMAL:
      needed = [o.l2[o.success] for o in own.values()]
      largest = max((n.max() for n in needed if len(n)), default=1.0)
      budgets = np.linspace(0, largest, NUM_BUDGETS)
      for attack_run, outcome in own.items():
        counts = white_box.budget_curve(outcome.l2, outcome.success, budgets)
        curves[f'curve/{attack}/{attack_run.active}'] = _banded(
          budgets, counts, len(outcomes.sources)
        )
    elif attack == 'pgd':
      # DET_org is not tried on smaller budgets.
      for active in SHOWN:
        points = sorted(
          (
            attack_run.share * inputs.config.white_epsilon,
            outcome.success.sum(),
          )
          for attack_run, outcome in own.items()
          if attack_run.active == active
        )
        budgets, counts = np.transpose([(0, 0), *points])
        curves[f'curve/pgd/{active}'] = _banded(
          budgets, counts.astype(int), len(outcomes.sources)
        )
  return curves | step_curves(inputs, outcomes)


def step_curves(inputs: RunInputs, outcomes: Outcomes) -> dict[str, np.ndarray]:
  """Counts success on the ensemble by number of steps, as `curves_of`."""
  curves = {}
  for attack in [a for a in STEPPED if a in inputs.config.attack_names]:
    attack_runs = [
      AttackRun('GCD', divisor=divisor) for divisor in (*DIVISORS, 1)
    ]
    own = [outcomes.single[attack, attack_run] for attack_run in attack_runs]
    steps = np.array(
      [
        steps_of(inputs.config, attack, attack_run)
        for attack_run in attack_runs
      ]
    )
    lines = {ANY_SIZE: np.inf}
    if attack in MINIMAL and own[-1].success.any():
      lines[SMALL] = float(np.median(own[-1].l2[own[-1].success]))
    for line, budget in lines.items():
      counts = [int((o.success & (o.l2 <= budget)).sum()) for o in own]
      curves[f'steps/{attack}/{line}'] = _banded(
        steps, np.array(counts), len(outcomes.sources)
      )
  return curves


def _banded(budgets, counts, n: int) -> np.ndarray:
  ends = np.transpose([share_interval(count, n) for count in counts])
  return np.stack([budgets, 100 * counts / n, *ends])


def curve_drawings(inputs: RunInputs, curves) -> list[Plot]:
  """Lays out the curves, with DET_org left out where it has no curve."""

  def drawing(name: str, attacks, xlabel: str, caption: str) -> list[Plot]:
    panels = {
      PAPER_NAME[attack]: {
        active: f'curve/{attack}/{active}'
        for active in ACTIVE_DETECTORS
        if f'curve/{attack}/{active}' in curves
      }
      for attack in attacks
      if attack in inputs.config.attack_names
    }
    options = {'panels': panels, 'xlabel': xlabel, 'ylabel': RATE}
    return [Plot(name, 'curves', caption, options)] if panels else []

  steps = {
    PAPER_NAME[attack]: {
      line: f'steps/{attack}/{line}'
      for line in (ANY_SIZE, SMALL)
      if f'steps/{attack}/{line}' in curves
    }
    for attack in STEPPED
    if attack in inputs.config.attack_names
  }
  size = 'L2 budget (image units)'
  text = (
    'Pictures on which {} white-box attacks have success, neither flagged nor '
    'kept from its goal, by a change of at most the budget.'
  )
  return [
    *drawing(
      'budget-untargeted',
      ('deepfool', 'carlini_wagner', 'ddn'),
      size,
      text.format('untargeted'),
    ),
    *drawing(
      'budget-targeted',
      ('carlini_wagner_t', 'ddn_t'),
      size,
      text.format('targeted'),
    ),
    *drawing(
      'budget-linf',
      ('pgd',),
      'Linf budget epsilon (image units)',
      'PGD-U within smaller and smaller budgets; each point is an attack, and '
      'counts what the smaller ones found.',
    ),
    *(
      [
        Plot(
          'steps',
          'curves',
          'Success on GCD against the number of steps of each search, each '
          'point an attack of its own: where a curve still rises at its end, '
          'more steps would find more. Of DDN also success within the median '
          'L2 of what the most steps find.',
          {'panels': steps, 'xlabel': 'steps', 'ylabel': RATE},
        )
      ]
      if steps
      else []
    ),
  ]


def _example_rows(white: WhiteBox) -> np.ndarray:
  return np.flatnonzero(white.unflagged_when_clean[: report.NUM_EXAMPLES])[:4]


def example_pictures(
  inputs: RunInputs, white: WhiteBox, found: dict[str, Any]
) -> dict[str, np.ndarray]:
  """Collects the pictures of Figure 5, a line a picture: clean, then guards."""
  rows = _example_rows(white)
  if 'ddn' not in inputs.config.attack_names or not len(rows):
    return {}
  shown = [white.pictures.images[rows]] + [
    found['ddn'][f'{part_of(active)}/images'][rows] for active in SHOWN
  ]
  lines = np.stack(shown, axis=1).reshape(-1, *shown[0].shape[1:])
  return {'examples': np.broadcast_to(lines, (*lines.shape[:3], 3))}


def example_drawing(
  inputs: RunInputs, white: WhiteBox, found: dict[str, Any]
) -> list[Plot]:
  """Lays out Figure 5."""
  if not example_pictures(inputs, white, found):
    return []
  names, own = white.pictures.class_names, found['ddn']
  titles = []
  for row in _example_rows(white):
    titles.append([f'clean: {names[white.pictures.labels[row]]}'])
    for active in SHOWN:
      part = part_of(active)
      judged = Judged(own[f'{part}/predicted'], own[f'{part}/logits'])
      success = white_box.succeeded(judged, active, white.pictures.labels, None)
      outcome = (
        f'as {names[judged.predicted[row]]}, L2 {own[f"{part}/l2"][row]:.2f}'
      )
      titles.append([active, outcome if success[row] else 'no success'])
  return [
    Plot(
      'examples',
      'titled_pictures',
      'Pictures that DDN-U has changed, the class they are taken for and the '
      'L2 size of the change: without detector, past DET_IS, and past the '
      'ensemble (Figure 5 of the paper). Where there is no success the picture '
      'is the clean one.',
      {'pictures': 'examples', 'titles': titles},
    )
  ]


def part_of(active: str) -> int:
  """Gives the number of the turn that attacks a guard at the full budget."""
  return list(ACTIVE_DETECTORS).index(active)
