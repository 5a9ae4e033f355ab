"""Tables 3 and 4, Figure 5: attacks that know the detectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import conduct
from experiments.gcd.protocol import adaptive, record
from experiments.gcd.protocol import run as protocol
from experiments.gcd.protocol.adaptive import (
  FORMS,
  SHARES,
  Judged,
  Turn,
  White,
  turns_of,
)
from experiments.gcd.protocol.plan import plan
from experiments.gcd.protocol.setting import (
  MINIMAL,
  PAPER_NAME,
  Config,
  get_config,
)
from experiments.gcd.protocol.study import Study
from jaxadv.experiment import Cell
from jaxadv.metrics.figures import Figure
from jaxadv.metrics.intervals import wilson
from jaxadv.reports import Claim, Record, Row, Table
from jaxadv.reports import Figure as Drawing
from jaxadv.reports.verdicts import Comparison, judge

__all__ = ['cells', 'get_config', 'plan', 'run']

QUESTION = (
  'Does the ensemble of detectors withstand attackers who know it, and how '
  'much larger a change do they need?'
)
FLAGGED = 'flagged (%)'
SIZE = 'median L2 of the change'
RATIO = 'ratio of the medians'
# Above it the paper calls a defence broken.
BROKEN = 50.0
NUM_BUDGETS = 60
PRINTED_FORM = {
  'no detector': 'no_detector',
  'DET_IS': 'DET_IS',
  'GCD': 'GCD',
}
PRINTED_SIZE = {'no detector': 'without detector', 'GCD': 'with GCD'}
# Attacks whose sizes Table 4 compares.
SIZED = ('ddn', 'ddn_t', 'cw', 'cw_t')
# With a budget and of minimal norm: those tried on what is costly.
PROBES = ('pgd', 'ddn')
WAYS = {
  'past': 'past the detectors',
  'through': 'through the repair',
  'either': 'either of both',
}


def cells(config: Config) -> list[Cell]:
  """Lists the cells of a run: every attack, and two with the probes."""
  names = list(config.attacks)
  if set(PROBES) & set(config.attacks):
    names += ['second_order', 'pipeline']
  return [Cell(name, {'attack': name}) for name in names]


def run(config: Config, workdir: str) -> Record | None:
  """Runs the experiment and writes its report; see `protocol.run`."""
  return protocol.run(
    config,
    workdir,
    name='gcd_whitebox',
    question=QUESTION,
    cells=cells(config),
    work=conduct.CellWork(run_cell),
    describe=describe,
  )


def run_cell(study: Study, cell: Cell, note) -> dict[str, np.ndarray]:
  """Runs a white-box attack: {'TURN/NAME': array}, NAME as of `measured`.

  TURN is the number of the turn, or the attack in a cell of probes.
  """
  note('detectors', 0.0)
  white = adaptive.white_box(study)
  probes = [attack for attack in PROBES if attack in study.config.attacks]
  note(f'white box: {PAPER_NAME.get(cell.name, cell.name)}', 0.0)
  if cell.name == 'second_order':
    plain = white._replace(guard=dataclasses.replace(white.guard, smooth=False))
    turn = [Turn('DET_IS')]
    parts = {
      attack: adaptive.attack_white(study, plain, attack, turn)[0]
      for attack in probes
    }
  elif cell.name == 'pipeline':
    parts = {
      attack: adaptive.attack_pipeline(study, white, attack)
      for attack in probes
    }
  else:
    turns = turns_of(cell.name)
    found = adaptive.attack_white(study, white, cell.name, turns)
    parts = {str(number): part for number, part in enumerate(found)}
  return {
    f'{part}/{name}': array[: record.NUM_EXAMPLES]
    if name == 'images'
    else array
    for part, arrays in parts.items()
    for name, array in arrays.items()
  }


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


class Outcomes(NamedTuple):
  """What all attacks came to.

  Attributes:
    informed: {(attack, turn): outcome} of attacks that know the guard.
    blind: {(attack, form): outcome} of those that do not.
    plain: {attack: outcome} against DET_IS with the plain gradient.
    pipeline: {attack: {way: bool[n]}}, success against the whole defence.
    sources: int32[n], of the pictures.
  """

  informed: dict[tuple[str, Turn], Outcome]
  blind: dict[tuple[str, str], Outcome]
  plain: dict[str, Outcome]
  pipeline: dict[str, dict[str, np.ndarray]]
  sources: np.ndarray


def outcomes_of(study: Study, white: White, found: dict[str, Any]) -> Outcomes:
  """Judges the results of all cells."""
  informed, blind = {}, {}
  for attack in study.config.attacks:
    for number, turn in enumerate(turns_of(attack)):
      informed[attack, turn] = outcome_of(
        white, attack, turn.form, found[attack], str(number)
      )
      if turn == Turn('no detector'):
        for form in FORMS:
          blind[attack, form] = outcome_of(
            white, attack, form, found[attack], str(number)
          )
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
  return Outcomes(informed, blind, plain, pipeline, sources)


def describe(study: Study, found: dict[str, Any]) -> conduct.Findings:
  """Says what the attacks came to."""
  white = adaptive.white_box(study)
  flags = [
    record.share_row(
      {'role': 'clean', 'guard': form, 'pictures': 'clean'}, FLAGGED, flagged
    )
    for form, flagged in white.flagged.items()
    if form != 'no detector'
  ]
  if not white.quiet.any():
    return conduct.Findings(
      claims=[],
      rows=flags + record.picture_rows(study),
      answer='It cannot be told: the detectors flag every clean picture.',
      tables=tables(study),
      figures=[],
      arrays={},
      warnings=[
        f'DET_IS or DET_org flags each of the {len(white.quiet)} clean '
        'pictures; no success of an attack could be counted'
      ],
    )
  outcomes = outcomes_of(study, white, found)
  pairs = sizes_of(study, outcomes)
  curves = curves_of(study, outcomes)
  return conduct.Findings(
    claims=claims(study, outcomes, pairs),
    rows=[
      *success_rows(study, outcomes),
      *size_rows(study, pairs),
      *probe_rows(outcomes),
      *flags,
      *record.picture_rows(study),
    ],
    answer=answer(study, outcomes),
    tables=tables(study),
    figures=[
      *curve_drawings(study, curves),
      *example_drawing(study, white, found),
    ],
    arrays=curves | example_pictures(study, white, found),
    warnings=warnings(study, white, outcomes),
  )


def success_rows(study: Study, outcomes: Outcomes) -> list[Row]:
  """Gives success rates, of informed attacks and of blind ones."""
  printed = record.printed('table3')
  rows = []
  for (attack, turn), outcome in outcomes.informed.items():
    name = PAPER_NAME[attack]
    if attack == 'pgd' and turn.form != 'DET_org':
      keys = {
        'role': 'budget',
        'guard': turn.form,
        'epsilon': f'{turn.share * study.config.epsilon:.3g}',
      }
      rows.append(record.share_row(keys, record.RATE, outcome.success))
    if turn.share < 1:
      continue
    place = (record.paper_dataset(study), name, PRINTED_FORM.get(turn.form, ''))
    keys = {'role': 'white', 'attack': name, 'guard': turn.form}
    rows += [
      record.share_row(
        keys | {'judged': 'float'},
        record.RATE,
        outcome.success,
        printed.get(place),
      ),
      record.share_row(
        keys | {'judged': '8 bit'}, record.RATE, outcome.success_uint8
      ),
    ]
  for (attack, form), outcome in outcomes.blind.items():
    keys = {'role': 'blind', 'attack': PAPER_NAME[attack], 'guard': form}
    rows.append(record.share_row(keys, record.RATE, outcome.success))
  return rows


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
    free, guarded = (self.medians[form] for form in PRINTED_SIZE)
    return Figure(guarded.value / free.value, guarded.draws / free.draws)


def sizes_of(study: Study, outcomes: Outcomes) -> dict[str, Pair]:
  """Compares sizes of changes; leaves attacks out that never succeed twice."""
  pairs = {}
  for attack in [a for a in SIZED if a in study.config.attacks]:
    own = {form: outcomes.informed[attack, Turn(form)] for form in PRINTED_SIZE}
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


def size_rows(study: Study, pairs: dict[str, Pair]) -> list[Row]:
  """Gives the sizes of changes with and without detectors."""
  printed = record.printed('table4')
  rows = []
  for attack, pair in pairs.items():
    name = PAPER_NAME[attack]
    for form, figure in pair.medians.items():
      place = (record.paper_dataset(study), name, PRINTED_SIZE[form])
      keys = {'role': 'size', 'attack': name, 'guard': form}
      rows.append(
        record.figure_row(keys, SIZE, figure, pair.n, printed.get(place))
      )
    keys = {'role': 'ratio', 'attack': name, 'guard': 'GCD / no detector'}
    rows.append(record.figure_row(keys, RATIO, pair.ratio, pair.n))
  return rows


def probe_rows(outcomes: Outcomes) -> list[Row]:
  """Gives success with the plain gradient, and against the whole defence."""
  rows = []
  for attack, outcome in outcomes.plain.items():
    smooth = outcomes.informed[attack, Turn('DET_IS')]
    for gradient, own in {'smooth': smooth, 'plain': outcome}.items():
      keys = {
        'role': 'second_order',
        'attack': PAPER_NAME[attack],
        'gradient': gradient,
      }
      rows.append(record.share_row(keys, record.RATE, own.success))
      if own.success.any():
        (median,) = paired_medians([own.l2[own.success]])
        n = int(own.success.sum())
        rows.append(record.figure_row(keys, SIZE, median, n))
  for attack, ways in outcomes.pipeline.items():
    for way, success in ways.items():
      keys = {
        'role': 'pipeline',
        'attack': PAPER_NAME[attack],
        'way': WAYS[way],
      }
      rows.append(record.share_row(keys, record.RATE, success))
  return rows


def claims(
  study: Study, outcomes: Outcomes, pairs: dict[str, Pair]
) -> list[Claim]:
  """Judges what the paper says of the white box."""

  def rate(attack: str, form: str) -> Figure:
    return record.share_figure(
      outcomes.informed[attack, Turn(form)].success, outcomes.sources
    )

  def spare(figure: Figure) -> Figure:
    return Figure(BROKEN - figure.value, BROKEN - figure.draws)

  def percent_more(ratio: Figure) -> Figure:
    return Figure(100 * (ratio.value - 1), 100 * (ratio.draws - 1))

  attacks = study.config.attacks
  return [
    judge(
      f'GCD keeps the success of every white-box attack below {BROKEN:.0f} %',
      [
        Comparison(
          f'{BROKEN:.0f} minus success of {PAPER_NAME[a]}',
          spare(rate(a, 'GCD')),
        )
        for a in attacks
      ],
    ),
    judge(
      'GCD is harder to get past than DET_IS alone',
      [
        Comparison(
          f'success of {PAPER_NAME[a]} with DET_IS minus with GCD',
          rate(a, 'DET_IS') - rate(a, 'GCD'),
        )
        for a in attacks
      ],
    ),
    judge(
      'Getting past GCD costs a larger L2 change',
      [
        Comparison(
          f'{PAPER_NAME[a]}: by how many per cent the median is larger',
          percent_more(pair.ratio),
        )
        for a, pair in pairs.items()
      ],
    ),
  ]


def answer(study: Study, outcomes: Outcomes) -> str:
  """Answers the question in a sentence."""
  means = {
    form: 100
    * np.mean(
      [
        outcomes.informed[a, Turn(form)].success.mean()
        for a in study.config.attacks
      ]
    )
    for form in FORMS
  }
  parts = [f'{mean:.0f} % ({form})' for form, mean in means.items()]
  return (
    f'Mean success of {len(study.config.attacks)} white-box attacks on '
    f'{len(outcomes.sources)} pictures: {", ".join(parts)}.'
  )


def warnings(study: Study, white: White, outcomes: Outcomes) -> list[str]:
  """Says where figures may mislead."""
  found = []
  if not white.quiet.all():
    found.append(
      f'only {white.quiet.sum()} of the {len(white.quiet)} attacked pictures '
      'are quiet when clean; the others count nowhere'
    )
  for attack, plain in outcomes.plain.items():
    smooth = outcomes.informed[attack, Turn('DET_IS')]
    if masked(smooth, plain, sized=attack in MINIMAL):
      found.append(
        f'{PAPER_NAME[attack]} on DET_IS: the smooth gradient does not beat '
        f'the plain one ({summary(smooth)} against {summary(plain)}), so the '
        'gradient may be masked and success be understated'
      )
  for (attack, form), blind in outcomes.blind.items():
    informed = outcomes.informed[attack, Turn(form)]
    if blind.success.sum() > informed.success.sum():
      found.append(
        f'{PAPER_NAME[attack]} that does not know {form} beats the one that '
        f'does ({blind.success.sum()} against {informed.success.sum()} of '
        f'{len(blind.success)} pictures): the latter is badly optimised'
      )
  return found


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


def curves_of(study: Study, outcomes: Outcomes) -> dict[str, np.ndarray]:
  """Counts success within budgets: {name: float64[4, P]} for `plots.curves`."""
  curves = {}
  for attack in study.config.attacks:
    own = {
      turn: outcome
      for (name, turn), outcome in outcomes.informed.items()
      if name == attack
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
      for form in {turn.form: None for turn in own}:
        points = sorted(
          (turn.share * study.config.epsilon, outcome.success.sum())
          for turn, outcome in own.items()
          if turn.form == form
        )
        budgets, counts = np.transpose([(0, 0), *points])
        curves[f'curve/pgd/{form}'] = _banded(
          budgets, counts.astype(int), len(outcomes.sources)
        )
  return curves


def _banded(budgets, counts, n: int) -> np.ndarray:
  ends = np.transpose([wilson(count, n) for count in counts])
  return np.stack([budgets, 100 * counts / n, *(100 * ends)])


def curve_drawings(study: Study, curves) -> list[Drawing]:
  """Lays out the curves, with DET_org left out where it has no curve."""

  def drawing(name: str, attacks, xlabel: str, caption: str) -> list[Drawing]:
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
    return [Drawing(name, 'curves', caption, options)] if panels else []

  size = 'L2 budget (image units)'
  text = (
    'Pictures on which a {} white-box attack has success, neither flagged nor '
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
      'PGD-U within smaller and smaller budgets; each point is an attack.',
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
    found['ddn'][f'{part_of(form)}/images'][rows] for form in PRINTED_FORM
  ]
  lines = np.stack(shown, axis=1).reshape(-1, *shown[0].shape[1:])
  return {'examples': np.broadcast_to(lines, (*lines.shape[:3], 3))}


def example_drawing(
  study: Study, white: White, found: dict[str, Any]
) -> list[Drawing]:
  """Lays out Figure 5."""
  if not example_pictures(study, white, found):
    return []
  names, own = white.pictures.class_names, found['ddn']
  titles = []
  for row in _example_rows(white):
    titles.append([f'clean: {names[white.pictures.labels[row]]}'])
    for form in PRINTED_FORM:
      part = part_of(form)
      judged = Judged(own[f'{part}/predicted'], own[f'{part}/logits'])
      success = adaptive.succeeded(judged, form, white.pictures.labels, None)
      outcome = (
        f'as {names[judged.predicted[row]]}, L2 {own[f"{part}/l2"][row]:.2f}'
      )
      titles.append([form, outcome if success[row] else 'no success'])
  return [
    Drawing(
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


def tables(study: Study) -> list[Table]:
  """Lays out the tables."""
  reading, alpha = adaptive.repair_setting(study.config)
  counted = (
    'Counted over pictures that neither detector flags when clean; success: '
    'not flagged, and the label changed (targeted: the target reached).'
  )
  return [
    Table(
      'Success of attacks that know the detectors',
      record.RATE,
      ('attack',),
      'guard',
      columns=tuple(FORMS),
      where={'role': 'white', 'judged': 'float'},
      note=counted
      + ' DFool-U walks to the class that it finds without detectors.',
    ),
    Table(
      'Size of the change with and without GCD',
      SIZE,
      ('attack',),
      'guard',
      where={'role': 'size'},
      note='Over pictures on which the attack has success both ways, which '
      'favours small changes where the ensemble stops many.',
      decimals=3,
    ),
    Table(
      'How many times larger the change is',
      RATIO,
      ('attack',),
      'guard',
      where={'role': 'ratio'},
      decimals=2,
    ),
    Table(
      'Success of PGD-U within smaller budgets',
      record.RATE,
      ('guard',),
      'epsilon',
      columns=tuple(
        f'{share * study.config.epsilon:.3g}' for share in (*SHARES, 1)
      ),
      where={'role': 'budget'},
    ),
    Table(
      'Success against the whole defence, detectors and repair',
      record.RATE,
      ('attack',),
      'way',
      where={'role': 'pipeline'},
      note='Through the repair: the attack goes on where a picture is flagged '
      f'(BPDA, mean over {study.config.num_draws} draws of the mask), judged '
      'by a vote of fresh draws; the suspects are the share '
      f'{alpha:g} of the pixels ({reading}), not chosen for its results. The '
      "paper's white box ignores the repair.",
    ),
    Table(
      'DET_IS attacked with and without smooth derivatives of ReLU',
      record.RATE,
      ('attack',),
      'gradient',
      where={'role': 'second_order'},
      control=True,
      note='If the smooth gradient were not better, it might be masked.',
    ),
    Table(
      'The same: size of the change',
      SIZE,
      ('attack',),
      'gradient',
      where={'role': 'second_order'},
      control=True,
      decimals=3,
    ),
    Table(
      'Success of attacks that do not know the detectors',
      record.RATE,
      ('attack',),
      'guard',
      columns=tuple(FORMS),
      where={'role': 'blind'},
      control=True,
      note='Ought to be below that of attacks that do.',
    ),
    Table(
      'Success of attacks that know the detectors, after rounding to 8 bit',
      record.RATE,
      ('attack',),
      'guard',
      columns=tuple(FORMS),
      where={'role': 'white', 'judged': '8 bit'},
      control=True,
    ),
    Table(
      'Clean test pictures that are flagged',
      FLAGGED,
      ('pictures',),
      'guard',
      where={'role': 'clean'},
    ),
    *record.picture_tables(study)[:1],
  ]
