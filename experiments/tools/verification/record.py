"""What the report of a verification shows: rows, tables, figures, arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.tools.verification.measuring import Outcome, Subject
from experiments.tools.verification.named import NORMS, NamedAttack
from jaxadv import reports
from jaxadv.metrics.accuracy import Share, share
from jaxadv.metrics.intervals import wilson

ROBUST = 'robust accuracy (%)'
SUCCESS = 'attack success rate (%)'
SURVIVES = 'successes that survive 8 bit (%)'
CHECKED = 'share or size'
WORST = 'all attacks'
CLEAN = 'clean'
NORM_NAMES = {'linf': 'Linf', 'l2': 'L2'}
# A change that fills its ball may exceed epsilon by a rounding.
SLACK = 1e-6
# Success may fall by so much of all pictures as epsilon grows, by chance.
TOLERANCE = 0.02
# Points of a curve that is known at every distance.
NUM_POINTS = 60
QUANTILES = {'10 %': 0.1, 'median': 0.5, '90 %': 0.9}


class Measured(NamedTuple):
  """All outcomes of a run, and how they were asked for.

  Attributes:
    subject: What was measured.
    norm: 'linf' or 'l2'.
    epsilons: Radii by what was written, in rising order.
    outcomes: (attack, outcome), in the order asked for.
    checks: Result of the checks; None if they were not asked for or are not
      finished.
  """

  subject: Subject
  norm: str
  epsilons: Mapping[str, float]
  outcomes: Sequence[tuple[NamedAttack, Outcome]]
  checks: Mapping[str, Any] | None

  @property
  def correct(self) -> np.ndarray:
    """Which clean pictures are classified correctly, bool[N]."""
    return self.outcomes[0][1].correct

  @property
  def unbounded(self) -> list[tuple[NamedAttack, Outcome]]:
    """Those of attacks without a budget."""
    return [pair for pair in self.outcomes if not pair[0].has_budget]

  def robust(self, attack: NamedAttack, outcome: Outcome) -> list[Share]:
    """Counts the pictures that withstand one attack, for each epsilon.

    An attack without a budget counts where its change is small enough.
    """
    if attack.has_budget:
      return [share(outcome.correct & ~row) for row in outcome.success]
    distance = outcome.distance(self.norm)
    return [
      withstand(self.correct, distance, epsilon)
      for epsilon in self.epsilons.values()
    ]

  def worst(self) -> list[Share]:
    """Counts the pictures that withstand all attacks, for each epsilon.

    What was found at a smaller epsilon counts at a larger one.
    """
    distance = np.min(
      [outcome.distance(self.norm) for _, outcome in self.outcomes], axis=0
    )
    return [
      withstand(self.correct, distance, epsilon)
      for epsilon in self.epsilons.values()
    ]


def withstand(
  correct: np.ndarray, distance: np.ndarray, epsilon: float
) -> Share:
  """Counts the pictures that no successful change within epsilon is known of.

  Args:
    correct: bool[N], whether the clean picture is classified correctly.
    distance: float64[N], the smallest such change; infinite if there is none.
    epsilon: Radius in the same norm.
  """
  return share(correct & (distance > epsilon + SLACK))


def rows(measured: Measured) -> list[reports.Row]:
  """Gives the measured figures."""
  clean = share(measured.correct)
  lines = {WORST: measured.worst()} | {
    attack.text: measured.robust(attack, outcome)
    for attack, outcome in measured.outcomes
  }
  found = []
  for name, shares in lines.items():
    columns = (CLEAN, *measured.epsilons)
    found += [
      _row({'attack': name, 'epsilon': column}, ROBUST, each)
      for column, each in zip(columns, (clean, *shares), strict=True)
    ]
  for attack, outcome in measured.outcomes:
    columns = tuple(measured.epsilons) if attack.has_budget else ('any',)
    for column, success, rounded in zip(
      columns, outcome.success, outcome.success_uint8, strict=True
    ):
      keys = {'attack': attack.text, 'epsilon': column}
      reached = outcome.correct & success
      if outcome.correct.any():
        found.append(_row(keys, SUCCESS, share(success, outcome.correct)))
      if reached.any():
        found.append(_row(keys, SURVIVES, share(rounded, reached)))
  for attack, outcome in measured.unbounded:
    for norm in NORMS:
      distance = outcome.distance(norm)[outcome.correct]
      found += _distance_rows(attack, norm, distance[np.isfinite(distance)])
  return found + _check_rows(measured)


def _check_rows(measured: Measured) -> list[reports.Row]:
  """Gives what the checks measured; shares with their interval."""
  if measured.checks is None:
    return []
  numbers = measured.checks['numbers']
  correct = round(numbers['clean_accuracy'] * measured.checks['n'])
  found = []
  for name, value in numbers.items():
    n, low, high = None, None, None
    if name == 'clean_accuracy' or name == 'changed_predictions':
      n = measured.checks['n']
    elif name.startswith('success') or name.endswith(('logits', 'gradients')):
      n = correct
    if n:
      low, high = wilson(round(value * n), n)
    found.append(
      reports.Row(
        {'looked_at': name.replace('_', ' '), 'column': 'number'},
        CHECKED,
        value,
        low,
        high,
        n,
      )
    )
  return found


def _row(keys: dict[str, Any], metric: str, each: Share) -> reports.Row:
  low, high = each.interval()
  return reports.Row(
    keys, metric, 100 * each.value, 100 * low, 100 * high, each.n
  )


def _distance_rows(
  attack: NamedAttack, norm: str, distance: np.ndarray
) -> list[reports.Row]:
  """Gives quantiles; an interval's ends are those of Wilson for their rank."""
  n = len(distance)
  if not n:
    return []
  found = []
  for column, level in QUANTILES.items():
    ends = wilson(round(level * n), n)
    value, low, high = np.quantile(distance, [level, *ends])
    found.append(
      reports.Row(
        {'attack': attack.text, 'column': column},
        _distance_metric(norm),
        float(value),
        float(min(low, value)),
        float(max(high, value)),
        n,
      )
    )
  return found


def _distance_metric(norm: str) -> str:
  return f'{NORM_NAMES[norm]} distance (1 = black to white)'


def tables(measured: Measured) -> list[reports.Table]:
  """Lays the tables out."""
  name = NORM_NAMES[measured.norm]
  note = (
    f'Columns: radius of the budget in {name}. {WORST}: correct under every '
    'attack; what was found within a smaller radius counts within a larger '
    'one.'
  )
  if measured.unbounded:
    texts = ', '.join(attack.text for attack, _ in measured.unbounded)
    note += (
      f' Of {texts}, which have no budget, a success counts where its change '
      f'is at most that large in {name}.'
    )
  found = [
    reports.Table(
      'Pictures classified correctly',
      ROBUST,
      ('attack',),
      'epsilon',
      columns=(CLEAN, *measured.epsilons),
      note=note,
    )
  ]
  found += [
    reports.Table(
      'Smallest changes that succeed',
      _distance_metric(norm),
      ('attack',),
      'column',
      columns=tuple(QUANTILES),
      note='Of the pictures that were correct when clean and on which the '
      'attack had success. The interval of a quantile is that of its rank.',
      decimals=4,
    )
    for norm in NORMS
    if measured.unbounded
  ]
  for title, metric, note in (
    (
      'Success on pictures that were correct when clean',
      SUCCESS,
      'any: however large the change.',
    ),
    (
      'Saved as 8-bit pictures',
      SURVIVES,
      'Of the successes, those that still are one after rounding to 8 bit.',
    ),
  ):
    found.append(
      reports.Table(
        title,
        metric,
        ('attack',),
        'epsilon',
        columns=(*measured.epsilons, 'any'),
        note=note,
      )
    )
  found.append(
    reports.Table(
      'What the checks measured',
      CHECKED,
      ('looked_at',),
      'column',
      note='Success: of PGD within a radius, of noise, and of a short search '
      'by queries. Shares are of the pictures that were correct when clean.',
      decimals=3,
    )
  )
  return found


def figures(measured: Measured) -> list[reports.Figure]:
  """Lays the figures out."""
  name = NORM_NAMES[measured.norm]
  panels = {
    f'budget in {name}': {
      text: f'curve/{text}'
      for text in (WORST, *(attack.text for attack, _ in measured.outcomes))
    }
  }
  if measured.unbounded:
    panels |= {
      f'no budget: {NORM_NAMES[norm]} of the change': {
        attack.text: f'distance/{norm}/{attack.text}'
        for attack, _ in measured.unbounded
      }
      for norm in NORMS
    }
  found = [
    reports.Figure(
      name='robust_accuracy',
      kind='curves',
      caption='Pictures that are classified correctly, by the size of the '
      'change that is allowed. Bands: 95 % intervals. Dots: radii that were '
      'measured; 0 is clean.',
      options={
        'panels': panels,
        'xlabel': 'size of the change (1 = black to white)',
        'ylabel': ROBUST,
        'ticks': {f'budget in {name}': {'0': 0} | dict(measured.epsilons)},
      },
    )
  ]
  shown = _with_examples(measured)
  if shown:
    found.append(
      reports.Figure(
        name='pictures',
        kind='example_pictures',
        caption='The first pictures that are classified correctly, attacked '
        f'with the largest radius, {list(measured.epsilons)[-1]} in {name}, '
        'where the attack has a budget. Attacked pictures without success '
        'keep their class.',
        options={
          'kinds': [attack.text for attack, _ in shown],
          'labels': [
            [
              [_class(measured, true), _class(measured, predicted)]
              for true, predicted in zip(
                outcome.truth, outcome.predicted, strict=True
              )
            ]
            for _, outcome in shown
          ],
        },
      )
    )
  return found


def arrays(measured: Measured) -> dict[str, np.ndarray]:
  """Gives what stands behind the figures, and each picture's outcome."""
  clean = share(measured.correct)
  x = [0.0, *measured.epsilons.values()]
  found = {
    'correct': measured.correct,
    'source': measured.subject.source,
    'epsilons': np.array(x[1:]),
    f'curve/{WORST}': _curve(x, [clean, *measured.worst()]),
  }
  for attack, outcome in measured.outcomes:
    text = attack.text
    found |= {
      f'curve/{text}': _curve(x, [clean, *measured.robust(attack, outcome)]),
      f'success/{text}': outcome.success,
      f'success_uint8/{text}': outcome.success_uint8,
    }
    found |= {f'{norm}/{text}': getattr(outcome, norm) for norm in NORMS}
  for attack, outcome in measured.unbounded:
    for norm in NORMS:
      distance = outcome.distance(norm)
      reached = distance[np.isfinite(distance)]
      far = np.quantile(reached, 0.95) if reached.size else 1.0
      points = np.linspace(0, far, NUM_POINTS)
      found[f'distance/{norm}/{attack.text}'] = _curve(
        points, [withstand(measured.correct, distance, x) for x in points]
      )
  shown = [outcome for _, outcome in _with_examples(measured)]
  if shown:
    found['examples/clean'] = np.stack([each.clean for each in shown])
    found['examples/attacked'] = np.stack([each.attacked for each in shown])
  return found


def _curve(
  x: Sequence[float] | np.ndarray, shares: Sequence[Share]
) -> np.ndarray:
  """Gives float64[4, P]: x, per cent, and both ends of the interval."""
  ends = [each.interval() for each in shares]
  return np.array(
    [
      x,
      [100 * each.value for each in shares],
      [100 * low for low, _ in ends],
      [100 * high for _, high in ends],
    ]
  )


def _with_examples(measured: Measured) -> list[tuple[NamedAttack, Outcome]]:
  """Gives what the pictures are of: all attacks, if there is a picture."""
  return [pair for pair in measured.outcomes if len(pair[1].clean)]


def _class(measured: Measured, label: int) -> str:
  names = measured.subject.class_names
  return names[label] if label < len(names) else str(label)


def warnings(measured: Measured) -> list[str]:
  """Gives the signs that the numbers flatter the classifier."""
  found = list(measured.checks['warnings']) if measured.checks else []
  epsilons = list(measured.epsilons)
  for attack, outcome in measured.outcomes:
    if not attack.has_budget:
      continue
    values = [each.value for each in measured.robust(attack, outcome)]
    for index in range(1, len(values)):
      if values[index] > values[index - 1] + TOLERANCE:
        found.append(
          f'success falls: under {attack.text} the robust accuracy rises from '
          f'{100 * values[index - 1]:.1f} % at {epsilons[index - 1]} to '
          f'{100 * values[index]:.1f} % at {epsilons[index]}; take more steps'
        )
  return found


def answer(measured: Measured) -> str:
  """Gives the result, and what the checks say of it."""
  clean = share(measured.correct)
  text, worst = list(measured.epsilons)[-1], measured.worst()[-1]
  return (
    f'Of {clean.n} pictures {_percent(clean)} are classified correctly when '
    f'clean, and {_percent(worst)} under every attack within {text} in '
    f'{NORM_NAMES[measured.norm]}. {_trust(measured)}'
  )


def _trust(measured: Measured) -> str:
  found = warnings(measured)
  if found:
    return f'Warnings: {len(found)}, see below; trust it the less.'
  if measured.checks:
    return 'No check found a sign that this flatters the classifier.'
  return 'Whether this flatters the classifier was not checked.'


def _percent(each: Share) -> str:
  low, high = each.interval()
  return f'{100 * each.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]'
