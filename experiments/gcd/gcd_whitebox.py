"""Tables 3 and 4, Figure 5: attacks that know the detectors."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from experiments import conduct
from experiments.gcd.protocol import adaptive, record
from experiments.gcd.protocol import run as protocol
from experiments.gcd.protocol.adaptive import (
  FORMS,
  SHARES,
  Turn,
  White,
  turns_of,
)
from experiments.gcd.protocol.outcomes import (
  COMPARED,
  PROBES,
  Outcomes,
  Pair,
  budget_steps,
  masked,
  outcomes_of,
  paired_medians,
  sizes_of,
  summary,
)
from experiments.gcd.protocol.plan import plan
from experiments.gcd.protocol.setting import (
  MINIMAL,
  PAPER_NAME,
  Config,
  get_config,
)
from experiments.gcd.protocol.study import Study
from experiments.gcd.protocol.white_figures import (
  SHOWN,
  curve_drawings,
  curves_of,
  example_drawing,
  example_pictures,
)
from jaxadv.experiment import Cell
from jaxadv.metrics.figures import Figure
from jaxadv.reports import Claim, Record, Row, Table
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
# The tables' names of the guards; DET_org they leave out.
PRINTED_RATE = {form: form.replace(' ', '_') for form in SHOWN}
PRINTED_SIZE = dict(
  zip(COMPARED, ('without detector', 'with GCD'), strict=True)
)
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
    place = (record.paper_dataset(study), name, PRINTED_RATE.get(turn.form, ''))
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
    smooth = outcomes.single[attack, Turn('DET_IS')]
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
    smooth = outcomes.single[attack, Turn('DET_IS')]
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
  for smaller, larger in budget_steps(outcomes.single):
    few, many = (
      outcomes.single['pgd', turn].success for turn in (larger, smaller)
    )
    if few.sum() < many.sum():
      radii = [t.share * study.config.epsilon for t in (larger, smaller)]
      found.append(
        f'PGD-U on {larger.form} has success on {few.sum()} of {len(few)} '
        f'pictures at epsilon {radii[0]:.3g} and on {many.sum()} at '
        f'{radii[1]:.3g}: badly optimised; the tables count at an epsilon '
        'what any smaller one finds'
      )
  return found


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
      + ' DFool-U walks to the class that it finds without detectors. PGD-U '
      'counts what it finds within smaller budgets, too.',
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
      note='What is found within a smaller budget counts within a larger one.',
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
