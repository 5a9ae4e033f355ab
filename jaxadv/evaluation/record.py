"""What the report of a verification shows: rows, tables, figures, arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxadv import reports
from jaxadv.evaluation.measuring import Outcome, Subject
from jaxadv.evaluation.named import (
  ENOUGH_STEPS,
  STRONG,
  NamedAttack,
)
from jaxadv.metrics.accuracy import Share, share
from jaxadv.metrics.distortion import exceeds
from jaxadv.metrics.intervals import wilson

ROBUST = 'robust accuracy (%)'
SUCCESS = 'attack success rate (%)'
SURVIVES = 'successes that survive 8 bit (%)'
CHECKED = 'pictures (%)'
SIZE = 'size of logits'
WORST = 'all attacks'
# The line of what the checks tried, beside the attacks asked for.
CHECK_PGD = 'PGD of the checks'
CLEAN = 'clean'
NORM_NAMES = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}
# Success may fall by so much of all pictures as epsilon grows, by chance; and
# the attacks asked for may be this much weaker than the checks, before they
# are called weak.
TOLERANCE = 0.02
# Points of a curve that is known at every distance.
NUM_POINTS = 60
QUANTILES = {'10 %': 0.1, 'median': 0.5, '90 %': 0.9}

# What the findings and numbers of `jaxadv.attacks.checks` are called here.
FINDINGS = {
  'random_outputs': 'the outputs are random',
  'doubtful_outputs': 'the outputs may be no logits',
  'broken_gradients': 'the gradient is not finite everywhere',
  'batch_dependent': 'the logits depend on the batch',
  'saturated_logits': 'the logits are saturated',
  'zero_gradients': 'the gradients are zero or broken',
  'vanishing_gradients': 'the gradients of the cross-entropy vanish',
  'success_falls': 'a larger radius helps less',
  'blind_attack_wins': 'an attack without gradients does better',
  'black_box_wins': 'an attack from outside does better',
}
SIZES = {
  'output_spread': 'largest difference of logits between two calls',
  'median_margin': 'median margin between the true class and the next',
}
SHARES = {
  'clean_accuracy': 'classified correctly when clean',
  'changed_predictions': 'other class at a second call',
  'saturated_logits': 'margin too large for the cross-entropy',
  'zero_gradients': 'zero or broken gradient of the logits',
  'vanishing_gradients': 'no gradient of the cross-entropy, one of the logits',
}
BLIND = {'success_noise': 'noise', 'success_square': 'Square'}
# Shares of all pictures; the others are of those that are correct when clean.
OF_ALL = ('clean_accuracy', 'changed_predictions')


class Measured(NamedTuple):
  """All outcomes of a run, and how they were asked for.

  Attributes:
    subject: What was measured.
    norm: 'linf', 'l2' or 'l1'.
    epsilons: Radii by what was written, in rising order.
    outcomes: (attack, outcome), in the order asked for.
    checks: Result of the checks; None if they were not asked for or are not
      finished.
    doubts: (name, sentence) of what is doubtful without them.
  """

  subject: Subject
  norm: str
  epsilons: Mapping[str, float]
  outcomes: Sequence[tuple[NamedAttack, Outcome]]
  checks: Mapping[str, Any] | None
  doubts: Sequence[tuple[str, str]] = ()

  @property
  def correct(self) -> np.ndarray:
    """Which clean pictures are classified correctly, bool[N]."""
    return self.outcomes[0][1].correct

  @property
  def norms(self) -> tuple[str, ...]:
    """The norms in which changes are shown."""
    return tuple(dict.fromkeys(('linf', 'l2', self.norm)))

  @property
  def unbounded(self) -> list[tuple[NamedAttack, Outcome]]:
    """Those of attacks without a budget."""
    return [pair for pair in self.outcomes if not pair[0].has_budget]

  def beyond(self, size: np.ndarray, epsilon: float, norm: str) -> np.ndarray:
    """Tells which changes are larger than a radius."""
    return exceeds(
      size, epsilon, norm, math.prod(self.subject.images.shape[1:])
    )

  def robust(self, attack: NamedAttack, outcome: Outcome) -> list[Share]:
    """Counts the pictures that withstand one attack, for each epsilon.

    An attack without a budget counts where its change is small enough.
    """
    if not attack.has_budget:
      distance = outcome.distance(self.norm)
      return [
        self.withstand(distance, epsilon, self.norm)
        for epsilon in self.epsilons.values()
      ]
    return [
      share(outcome.correct & ~(success & ~outside))
      for success, outside in zip(
        outcome.success, self.outside(outcome), strict=True
      )
    ]

  def outside(self, outcome: Outcome) -> list[np.ndarray]:
    """Tells which changes of an attack with a budget exceed their radius."""
    sizes = getattr(outcome, self.norm)
    return [
      self.beyond(size, epsilon, self.norm)
      for size, epsilon in zip(sizes, self.epsilons.values(), strict=True)
    ]

  def worst(self, num: int | None = None) -> list[Share]:
    """Counts the pictures that withstand all attacks, for each epsilon.

    What was found at a smaller epsilon counts at a larger one.

    Args:
      num: Only of the first so many pictures; None for all.
    """
    distance = np.min(
      [outcome.distance(self.norm) for _, outcome in self.outcomes], axis=0
    )
    return [
      self.withstand(distance[:num], epsilon, self.norm)
      for epsilon in self.epsilons.values()
    ]

  def withstand(self, distance: np.ndarray, epsilon: float, norm: str) -> Share:
    """Counts the pictures that no successful change within epsilon is known of.

    Args:
      distance: float64[n], the smallest such change to each of the first n
        pictures; infinite if there is none.
      epsilon: Radius in the same norm.
      norm: Which.
    """
    correct = self.correct[: len(distance)]
    return share(correct & self.beyond(distance, epsilon, norm))


class Bound(NamedTuple):
  """What the checks leave of robust accuracy at a radius.

  Attributes:
    epsilon: The radius, as it was written.
    checked: The pictures that withstand the checks.
    asked: Those of the same pictures that withstand the attacks asked for.
    by: What the checks did it with.
  """

  epsilon: str
  checked: Share
  asked: Share
  by: str

  @property
  def lower(self) -> bool:
    """Whether fewer pictures withstand the checks."""
    return self.checked.value < self.asked.value

  @property
  def beats(self) -> bool:
    """Whether they are so many fewer that the attacks asked for are weak."""
    return self.checked.value < self.asked.value - TOLERANCE


def bounds(measured: Measured) -> list[Bound]:
  """Compares the checks with the attacks asked for, on the same pictures.

  As with these, what was found within a smaller radius counts within a larger
  one. What the checks try without gradients is measured at the largest radius.

  Returns:
    One for each epsilon; none without checks.
  """
  if measured.checks is None:
    return []
  rates = dict(measured.checks['curve'])
  found = []
  best = (0.0, 'PGD')
  texts = list(measured.epsilons)
  asked = measured.worst(measured.checks['n'])
  for text, before in zip(texts, asked, strict=True):
    best = max(best, (rates[measured.epsilons[text]], 'PGD'))
    if text == texts[-1]:
      numbers = measured.checks['numbers']
      blind = [(numbers[k], by) for k, by in BLIND.items() if k in numbers]
      best = max([best, *blind], key=lambda pair: pair[0])
    found.append(Bound(text, _left(measured, best[0]), before, best[1]))
  return found


def _left(measured: Measured, rate: float) -> Share:
  """Counts the checked pictures that withstand a success rate."""
  assert measured.checks is not None
  n = measured.checks['n']
  correct = round(measured.checks['numbers']['clean_accuracy'] * n)
  return Share(correct - round(rate * correct), n)


def rows(measured: Measured) -> list[reports.Row]:
  """Gives the measured figures."""
  clean = share(measured.correct)
  lines = {WORST: [clean, *measured.worst()]} | {
    attack.text: [clean, *measured.robust(attack, outcome)]
    for attack, outcome in measured.outcomes
  }
  if measured.checks:
    lines[CHECK_PGD] = _by_checks(measured)
  found = []
  for name, shares in lines.items():
    columns = (CLEAN, *measured.epsilons)
    found += [
      _row({'attack': name, 'epsilon': column}, ROBUST, each)
      for column, each in zip(columns, shares, strict=True)
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
    for norm in measured.norms:
      distance = outcome.distance(norm)[outcome.correct]
      found += _distance_rows(attack, norm, distance[np.isfinite(distance)])
  return found + _check_rows(measured)


def _by_checks(measured: Measured) -> list[Share]:
  """Counts what withstands the PGD of the checks: clean, at each epsilon."""
  assert measured.checks is not None
  rates = dict(measured.checks['curve'])
  return [
    _left(measured, rate)
    for rate in (0.0, *(rates[each] for each in measured.epsilons.values()))
  ]


def _check_rows(measured: Measured) -> list[reports.Row]:
  """Gives what the checks measured; shares with their interval."""
  if measured.checks is None:
    return []
  numbers, n = measured.checks['numbers'], measured.checks['n']
  correct = round(numbers['clean_accuracy'] * n)
  largest = list(measured.epsilons)[-1]
  shares = {
    text: (name, numbers[name])
    for name, text in SHARES.items()
    if name in numbers
  } | {
    f'PGD succeeds within {radius_text(radius, measured)}': ('', rate)
    for radius, rate in measured.checks['curve']
  }
  for name, value in numbers.items():
    kind, _, attack = name.partition('success_')
    if not kind and not attack.startswith('at_'):
      by = BLIND.get(name, attack)
      shares[f'{by} succeeds within {largest}'] = (name, value)
  found = []
  for text, (name, value) in shares.items():
    among = n if name in OF_ALL else correct
    keys = {'looked_at': text, 'column': 'share'}
    found.append(_row(keys, CHECKED, Share(round(value * among), among)))
  return found + [
    reports.Row({'looked_at': SIZES[name], 'column': 'size'}, SIZE, value)
    for name, value in numbers.items()
    if name in SIZES
  ]


def radius_text(radius: float, measured: Measured) -> str:
  """Writes a radius as the user did, or as grey levels, or as a number."""
  for text, value in measured.epsilons.items():
    if value == radius:
      return text
  levels = radius * 255
  if measured.norm == 'linf' and abs(levels - round(levels)) < 1e-6:
    return f'{round(levels)}/255'
  return f'{radius:.4g}'


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
    'attack that was asked for; what was found within a smaller radius counts '
    'within a larger one.'
  )
  if measured.checks:
    n = measured.checks['n']
    note += f' {CHECK_PGD}: on the first {n} pictures.'
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
    for norm in measured.norms
    if measured.unbounded
  ]
  for title, metric, note in (
    (
      'Success on pictures that were correct when clean',
      SUCCESS,
      'any: however large the change.' * bool(measured.unbounded),
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
  found += [
    reports.Table(
      'What the checks measured',
      CHECKED,
      ('looked_at',),
      'column',
      note='Of the pictures that are correct when clean, but for the first two '
      'lines. Square is a short search by queries.',
    ),
    reports.Table(
      'What the checks saw of the logits',
      SIZE,
      ('looked_at',),
      'column',
      decimals=3,
    ),
  ]
  return found


def figures(measured: Measured) -> list[reports.Plot]:
  """Lays the figures out."""
  name = NORM_NAMES[measured.norm]
  lines = [WORST, *(attack.text for attack, _ in measured.outcomes)]
  if measured.checks:
    lines.append(CHECK_PGD)
  panels = {f'budget in {name}': {text: f'curve/{text}' for text in lines}}
  if measured.unbounded:
    panels |= {
      f'no budget: {NORM_NAMES[norm]} of the change': {
        attack.text: f'distance/{norm}/{attack.text}'
        for attack, _ in measured.unbounded
      }
      for norm in measured.norms
    }
  found = [
    reports.Plot(
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
      reports.Plot(
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
  if measured.checks:
    found[f'curve/{CHECK_PGD}'] = _curve(x, _by_checks(measured))
  for attack, outcome in measured.outcomes:
    text = attack.text
    found |= {
      f'curve/{text}': _curve(x, [clean, *measured.robust(attack, outcome)]),
      f'success/{text}': outcome.success,
      f'success_uint8/{text}': outcome.success_uint8,
    }
    found |= {
      f'{norm}/{text}': getattr(outcome, norm) for norm in measured.norms
    }
  for attack, outcome in measured.unbounded:
    for norm in measured.norms:
      distance = outcome.distance(norm)
      reached = distance[np.isfinite(distance)]
      far = np.quantile(reached, 0.95) if reached.size else 1.0
      points = np.linspace(0, far or 1.0, NUM_POINTS)
      found[f'distance/{norm}/{attack.text}'] = _curve(
        points, [measured.withstand(distance, x, norm) for x in points]
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
  """Gives the signs that the numbers flatter the classifier, or mislead."""
  found = []
  if not measured.correct.any():
    found.append(
      'none of the pictures is classified correctly when clean, so that there '
      'was nothing to attack; look at the labels and at the preprocessing'
    )
  beaten = [bound for bound in bounds(measured) if bound.beats]
  if beaten:
    assert measured.checks is not None
    found.append(
      'the attacks asked for are weaker than the checks: of the first '
      f'{measured.checks["n"]} pictures fewer withstand the checks, '
      + ', '.join(
        f'{_percent(bound.checked)} in place of {_percent(bound.asked)} within '
        f'{bound.epsilon} (by {bound.by})'
        for bound in beaten
      )
      + '; ask for a stronger attack'
    )
  attacks = [attack for attack, _ in measured.outcomes]
  if not any(attack.is_strong(measured.norm) for attack in attacks):
    found.append(
      f'only weak attacks: {", ".join(attack.text for attack in attacks)}; '
      f'none follows the gradient in {NORM_NAMES[measured.norm]} for '
      f'{ENOUGH_STEPS} steps or more, as {_strong_names(measured.norm)} do'
    )
  signs = measured.checks['warnings'] if measured.checks else measured.doubts
  found += [
    f'{FINDINGS.get(name, name.replace("_", " "))}: '
    + message.removeprefix('the classifier: ')
    for name, message in signs
  ]
  epsilons = list(measured.epsilons)
  for attack, outcome in measured.outcomes:
    if not attack.has_budget:
      continue
    outside = int((outcome.success & measured.outside(outcome)).sum())
    if outside:
      found.append(
        f'{attack.text} leaves its radius in {outside} of its successes, which '
        'do not count there'
      )
    values = [each.value for each in measured.robust(attack, outcome)]
    for index in range(1, len(values)):
      if values[index] > values[index - 1] + TOLERANCE:
        found.append(
          f'success falls: under {attack.text} the robust accuracy rises from '
          f'{100 * values[index - 1]:.1f} % at {epsilons[index - 1]} to '
          f'{100 * values[index]:.1f} % at {epsilons[index]}; take more steps'
        )
  return found


def _strong_names(norm: str) -> str:
  return ', '.join(
    f'{name}:num_steps=40' if name in ('bim', 'pgd') else name
    for name in STRONG[norm]
  )


def answer(measured: Measured) -> str:
  """Gives the result, and what the checks say of it.

  Where fewer pictures withstand the checks than the attacks asked for, be it
  one, theirs is the result.
  """
  clean = share(measured.correct)
  within = (
    f'within {list(measured.epsilons)[-1]} in {NORM_NAMES[measured.norm]}'
  )
  text = (
    f'Of {clean.n} pictures {_percent(clean)} are classified correctly when '
    'clean, and '
  )
  worst, last = measured.worst()[-1], bounds(measured)[-1:]
  if last and last[0].lower:
    (bound,) = last
    some = bound.checked.n < clean.n
    text += (
      f'at most {_percent(bound.checked)}'
      + f' of the first {bound.checked.n}' * some
      + f' when attacked {within}: {bound.by} of the checks breaks more than '
      f'the attacks asked for, which leave {_percent(bound.asked)}'
      + f' of these and {_percent(worst)} of all' * some
      + '.'
    )
  else:
    text += f'{_percent(worst)} under every attack {within}.'
  return f'{text} {_trust(measured)}'


def _trust(measured: Measured) -> str:
  found = []
  number = len(warnings(measured))
  if number:
    found.append(f'Warnings: {number}, see below; trust it the less.')
  elif any(bound.lower for bound in bounds(measured)[-1:]):
    found.append('So small a difference may be chance; no check warns of more.')
  elif measured.checks:
    found.append('No check found a sign that this flatters the classifier.')
  if not measured.checks:
    found.append('Whether this flatters the classifier was not checked.')
  return ' '.join(found)


def _percent(each: Share) -> str:
  low, high = each.interval()
  return f'{100 * each.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]'
