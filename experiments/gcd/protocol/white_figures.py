"""Figures of the white box: success within budgets, changed pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.gcd.protocol import adaptive, record
from experiments.gcd.protocol.adaptive import (
  DIVISORS,
  FORMS,
  STEPPED,
  Judged,
  Turn,
  White,
  steps_of,
)
from experiments.gcd.protocol.outcomes import Outcomes
from experiments.gcd.protocol.setting import MINIMAL, PAPER_NAME
from experiments.gcd.protocol.study import Study
from jaxadv.metrics.intervals import share_interval
from jaxadv.reports import Plot

NUM_BUDGETS = 60
# Guards of the paper's Table 3, whose pictures its Figure 5 shows.
SHOWN = ('no detector', 'DET_IS', 'GCD')
# Of the curves over the number of steps.
ANY_SIZE, SMALL = 'success', 'success within the median L2 of the last point'


def curves_of(study: Study, outcomes: Outcomes) -> dict[str, np.ndarray]:
  """Counts success within budgets: {name: float64[4, P]} for `plots.curves`."""
  curves = {}
  for attack in study.config.attacks:
    own = {
      turn: outcome
      for (name, turn), outcome in outcomes.informed.items()
      if name == attack and turn.divisor == 1
    }
    if attack in MINIMAL:
      needed = [o.l2[o.success] for o in own.values()]
      largest = max((n.max() for n in needed if len(n)), default=1.0)
      budgets = np.linspace(0, largest, NUM_BUDGETS)
      for turn, outcome in own.items():
        counts = adaptive.budget_curve(outcome.l2, outcome.success, budgets)
        curves[f'curve/{attack}/{turn.form}'] = _banded(
          budgets, counts, len(outcomes.sources)
        )
    elif attack == 'pgd':
      # DET_org is not tried on smaller budgets.
      for form in SHOWN:
        points = sorted(
          (turn.share * study.config.epsilon, outcome.success.sum())
          for turn, outcome in own.items()
          if turn.form == form
        )
        budgets, counts = np.transpose([(0, 0), *points])
        curves[f'curve/pgd/{form}'] = _banded(
          budgets, counts.astype(int), len(outcomes.sources)
        )
  return curves | step_curves(study, outcomes)


def step_curves(study: Study, outcomes: Outcomes) -> dict[str, np.ndarray]:
  """Counts success on the ensemble by number of steps, as `curves_of`."""
  curves = {}
  for attack in [a for a in STEPPED if a in study.config.attacks]:
    turns = [Turn('GCD', divisor=divisor) for divisor in (*DIVISORS, 1)]
    own = [outcomes.single[attack, turn] for turn in turns]
    steps = np.array([steps_of(study.config, attack, turn) for turn in turns])
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


def curve_drawings(study: Study, curves) -> list[Plot]:
  """Lays out the curves, with DET_org left out where it has no curve."""

  def drawing(name: str, attacks, xlabel: str, caption: str) -> list[Plot]:
    panels = {
      PAPER_NAME[attack]: {
        form: f'curve/{attack}/{form}'
        for form in FORMS
        if f'curve/{attack}/{form}' in curves
      }
      for attack in attacks
      if attack in study.config.attacks
    }
    options = {'panels': panels, 'xlabel': xlabel, 'ylabel': record.RATE}
    return [Plot(name, 'curves', caption, options)] if panels else []

  steps = {
    PAPER_NAME[attack]: {
      line: f'steps/{attack}/{line}'
      for line in (ANY_SIZE, SMALL)
      if f'steps/{attack}/{line}' in curves
    }
    for attack in STEPPED
    if attack in study.config.attacks
  }
  size = 'L2 budget (image units)'
  text = (
    'Pictures on which {} white-box attacks have success, neither flagged nor '
    'kept from its goal, by a change of at most the budget.'
  )
  return [
    *drawing(
      'budget-untargeted',
      ('deepfool', 'cw', 'ddn'),
      size,
      text.format('untargeted'),
    ),
    *drawing(
      'budget-targeted', ('cw_t', 'ddn_t'), size, text.format('targeted')
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
          {'panels': steps, 'xlabel': 'steps', 'ylabel': record.RATE},
        )
      ]
      if steps
      else []
    ),
  ]


def _example_rows(white: White) -> np.ndarray:
  return np.flatnonzero(white.quiet[: record.NUM_EXAMPLES])[:4]


def example_pictures(
  study: Study, white: White, found: dict[str, Any]
) -> dict[str, np.ndarray]:
  """Collects the pictures of Figure 5, a line a picture: clean, then guards."""
  rows = _example_rows(white)
  if 'ddn' not in study.config.attacks or not len(rows):
    return {}
  shown = [white.pictures.images[rows]] + [
    found['ddn'][f'{part_of(form)}/images'][rows] for form in SHOWN
  ]
  lines = np.stack(shown, axis=1).reshape(-1, *shown[0].shape[1:])
  return {'examples': np.broadcast_to(lines, (*lines.shape[:3], 3))}


def example_drawing(
  study: Study, white: White, found: dict[str, Any]
) -> list[Plot]:
  """Lays out Figure 5."""
  if not example_pictures(study, white, found):
    return []
  names, own = white.pictures.class_names, found['ddn']
  titles = []
  for row in _example_rows(white):
    titles.append([f'clean: {names[white.pictures.labels[row]]}'])
    for form in SHOWN:
      part = part_of(form)
      judged = Judged(own[f'{part}/predicted'], own[f'{part}/logits'])
      success = adaptive.succeeded(judged, form, white.pictures.labels, None)
      outcome = (
        f'as {names[judged.predicted[row]]}, L2 {own[f"{part}/l2"][row]:.2f}'
      )
      titles.append([form, outcome if success[row] else 'no success'])
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


def part_of(form: str) -> int:
  """Gives the number of the turn that attacks a guard at the full budget."""
  return list(FORMS).index(form)
