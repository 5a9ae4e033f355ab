"""Tables 3 and 4, Figure 5: attacks that know the detectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np

from experiments import conduct
from experiments.gcd.protocol import adaptive, record
from experiments.gcd.protocol import run as protocol
from experiments.gcd.protocol.adaptive import (
  DIVISORS,
  FORMS,
  SHARES,
  STEPPED,
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
  guard_rows,
  last_doubling,
  masked,
  outcomes_of,
  rate_rows,
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
from jaxadv.metrics.estimates import (
  Estimate,
  combine,
  over_trainings,
  share_estimate,
)
from jaxadv.metrics.intervals import share_interval
from jaxadv.reports import Claim, Record, Row, Table
from jaxadv.reports.rows import estimate_rows
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
# AUC on validation pictures below which a detector is too weak to be judged.
WEAK = 90.0
# Points of success, per cent of the size, that an attack which has converged
# may still gain by the last doubling of its steps, or lack to a like one.
GAIN = 3.0
# By how many per cent its median may exceed that of a like attack.
WASTE = 10.0
# Attacks that look for a small change, and the one that they ought to equal.
RIVAL = {'cw': 'ddn', 'cw_t': 'ddn_t', 'deepfool': 'ddn'}
# The tables' names of the guards; DET_org they leave out.
PRINTED_RATE = {form: form.replace(' ', '_') for form in SHOWN}
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
    plain = white._replace(
      guards=tuple(dataclasses.replace(g, smooth=False) for g in white.guards)
    )
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
  flags = detector_rows(study, white)
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
    claims=claims(study, white, outcomes, pairs),
    rows=[
      *success_rows(study, outcomes),
      *size_rows(pairs),
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


def detector_rows(study: Study, white: White) -> list[Row]:
  """Says how good the detectors are, and how many clean pictures they flag."""
  n = len(study.clean['test'].labels)
  estimates, sampling, keys = [], [], []
  for form in white.areas:
    shares = [
      share_estimate(flags, study.clean['test'].source)
      for flags in white.flagged[form]
    ]
    estimates.append(over_trainings(shares))
    sampling.append(share_interval(round(white.flagged[form].mean() * n), n))
    keys.append({'role': 'clean', 'guard': form, 'pictures': 'clean'})
  areas = [
    Row(
      {'role': 'validation', 'guard': form, 'pictures': 'validation'},
      record.AUC,
      float(areas.mean()),
    )
    for form, areas in white.areas.items()
  ]
  return [*estimate_rows(keys, FLAGGED, estimates, n, sampling), *areas]


def success_rows(study: Study, outcomes: Outcomes) -> list[Row]:
  """Gives success rates, of informed attacks and of blind ones."""
  printed = record.printed('table3')
  white, rounded, budgets, steps = [], [], [], []
  for (attack, turn), outcome in outcomes.informed.items():
    keys = {'attack': PAPER_NAME[attack], 'guard': turn.form}
    if attack == 'pgd' and turn.divisor == 1 and turn.form != 'DET_org':
      epsilon = f'{turn.share * study.config.epsilon:.3g}'
      budget = {'role': 'budget', 'guard': turn.form, 'epsilon': epsilon}
      budgets.append((budget, outcome.success))
    if turn == Turn(turn.form):
      role = {'role': 'white'} | keys
      white.append((role | {'judged': 'float'}, outcome.success))
      rounded.append((role | {'judged': '8 bit'}, outcome.success_uint8))
  for (attack, turn), outcome in outcomes.single.items():
    if attack in STEPPED and turn.form == 'GCD' and turn.share == 1:
      keys = {'role': 'steps', 'attack': PAPER_NAME[attack]}
      share = 'all' if turn.divisor == 1 else f'1/{turn.divisor}'
      steps.append((keys | {'steps': share}, outcome.success))
  dataset = record.paper_dataset(study)
  paper = [
    printed.get((dataset, keys['attack'], PRINTED_RATE.get(keys['guard'], '')))
    for keys, _ in white
  ]
  blind = [
    (
      {'role': 'blind', 'attack': PAPER_NAME[attack], 'guard': turn.form},
      outcome.success,
    )
    for (attack, turn), outcome in outcomes.blind.items()
    if turn == Turn(turn.form)
  ]
  return [
    *rate_rows(outcomes, white, paper),
    *rate_rows(outcomes, rounded),
    *rate_rows(outcomes, budgets),
    *rate_rows(outcomes, steps),
    *rate_rows(outcomes, blind),
  ]


def size_rows(pairs: dict[str, Pair]) -> list[Row]:
  """Gives the sizes of changes with and without detectors."""
  sizes = [
    ({'role': 'size', 'attack': PAPER_NAME[attack], 'guard': form}, estimate, n)
    for attack, (medians, n) in pairs.items()
    for form, estimate in medians.items()
  ]
  guard = 'GCD / no detector'
  ratios = [
    (
      {'role': 'ratio', 'attack': PAPER_NAME[attack], 'guard': guard},
      pair.ratio,
      pair.n,
    )
    for attack, pair in pairs.items()
  ]
  return [
    *_rows_of(SIZE, sizes),
    *_rows_of(RATIO, ratios),
  ]


def _rows_of(metric, measured) -> list[Row]:
  """Makes the rows of sizes or ratios; intervals are those of logarithms.

  Trainings move them by factors, and none is below 0.
  """
  keys, estimates, numbers = (
    zip(*measured, strict=True) if measured else [()] * 3
  )
  logarithms = [combine(np.log, estimate) for estimate in estimates]
  number = lambda value: None if value is None else float(np.exp(value))
  return [
    dataclasses.replace(
      row,
      value=float(np.exp(row.value)),
      ci_low=number(row.ci_low),
      ci_high=number(row.ci_high),
      paper=number(row.paper),
    )
    for row in guard_rows(keys, metric, logarithms, numbers)
  ]


def probe_rows(outcomes: Outcomes) -> list[Row]:
  """Gives success with the plain gradient, and against the whole defence."""
  rates, sizes = [], []
  for attack, outcome in outcomes.plain.items():
    smooth = outcomes.single[attack, Turn('DET_IS')]
    for gradient, own in {'smooth': smooth, 'plain': outcome}.items():
      keys = {
        'role': 'second_order',
        'attack': PAPER_NAME[attack],
        'gradient': gradient,
      }
      rates.append((keys, own.success))
      if own.success.any():
        estimate = outcomes.median(own.l2, own.success)
        sizes.append((keys, estimate, int(own.success.sum())))
  whole = [
    (
      {'role': 'pipeline', 'attack': PAPER_NAME[attack], 'way': WAYS[way]},
      success,
    )
    for attack, ways in outcomes.pipeline.items()
    for way, success in ways.items()
  ]
  return [
    *rate_rows(outcomes, rates),
    *_rows_of(SIZE, sizes),
    *rate_rows(outcomes, whole),
  ]


def claims(
  study: Study, white: White, outcomes: Outcomes, pairs: dict[str, Pair]
) -> list[Claim]:
  """Judges what the paper says of the white box.

  An attack that is badly optimised favours what it is tried on: the ensemble,
  or what the ensemble is compared with.
  """
  printed = record.printed('table3')

  def rate(attack: str, form: str) -> Estimate:
    place = (record.paper_dataset(study), PAPER_NAME[attack])
    return outcomes.rate(
      outcomes.informed[attack, Turn(form)].success,
      printed.get((*place, PRINTED_RATE[form])),
    )

  def unfit(*forms: str) -> list[str]:
    return [
      f'{form} has an AUC of {white.areas[form].mean():.1f} on the validation '
      f'pictures, below {WEAK:.0f}'
      for form in forms
      if white.areas[form].mean() < WEAK
    ]

  percent = lambda factor: 100 * np.log(factor)
  attacks, n = study.config.attacks, len(outcomes.sources)
  slow = {form: lagging(study, outcomes, form) for form in FORMS}
  fit = lambda attack, *forms: not any(attack in slow[form] for form in forms)
  compared = [a for a in attacks if fit(a, 'DET_IS', 'GCD')]
  sized = {
    attack: pair
    for attack, pair in pairs.items()
    if fit(attack, *COMPARED)
    and not any(wasteful(outcomes, attack, form) for form in COMPARED)
  }
  return [
    judge(
      f'GCD keeps the success of every white-box attack below {BROKEN:.0f} %',
      [
        Comparison(
          f'{BROKEN:.0f} minus success of {PAPER_NAME[a]}',
          BROKEN - rate(a, 'GCD'),
        )
        for a in attacks
      ],
      n=n,
      unfit=unfit('GCD'),
      generous=[*slow['GCD'].values()],
    ),
    without(
      judge(
        'GCD is harder to get past than DET_IS alone',
        [
          Comparison(
            f'success of {PAPER_NAME[a]} with DET_IS minus with GCD',
            rate(a, 'DET_IS') - rate(a, 'GCD'),
          )
          for a in compared
        ],
        n=n,
        unfit=unfit('DET_IS', 'GCD'),
      ),
      set(attacks) - set(compared),
    ),
    without(
      judge(
        'Getting past GCD costs a larger L2 change',
        [
          Comparison(
            f'{PAPER_NAME[a]}: by how many per cent (logarithms) the median is '
            'larger, less what the last doubling of steps saved',
            combine(percent, pair.ratio)
            - percent(1 / (1 - saved(outcomes, a) / 100)),
          )
          for a, pair in sized.items()
        ],
        n=min((pair.n for pair in sized.values()), default=None),
        unfit=unfit('GCD'),
      ),
      set(pairs) - set(sized),
    ),
  ]


def without(claim: Claim, left: Collection[str]) -> Claim:
  """Says beside a verdict which attacks it leaves out."""
  if not left:
    return claim
  names = ', '.join(PAPER_NAME[a] for a in PAPER_NAME if a in left)
  notes = [claim.note, f'left out, as they have not converged: {names}']
  return dataclasses.replace(claim, note='; '.join(filter(None, notes)))


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
  for form in white.areas:
    found += lagging(study, outcomes, form).values()
  for attack in STEPPED:
    if attack in study.config.attacks and saved(outcomes, attack) > GAIN:
      found.append(
        f'{PAPER_NAME[attack]} on GCD needs {saved(outcomes, attack):.0f} % '
        f'less L2 after {" than after ".join(_doubling(study, attack))} steps: '
        'more steps would need less'
      )
  return found


def lagging(study: Study, outcomes: Outcomes, form: str) -> dict[str, str]:
  """Says which attacks on a guard find too little: {attack: why}.

  What such an attack does not find says nothing of the guard.
  """
  found: dict[str, list[str]] = {}
  say = lambda attack, text: found.setdefault(attack, []).append(text)
  for attack in study.config.attacks:
    name, turn = f'{PAPER_NAME[attack]} on {form}', Turn(form)
    informed = outcomes.single[attack, turn].success
    blind = outcomes.blind[attack, turn].success
    if blind.sum() > informed.sum():
      say(
        attack,
        f'{PAPER_NAME[attack]} that does not know {form} beats the one that '
        f'does ({blind.sum()} against {informed.sum()} of {len(blind)} '
        'pictures): the latter is badly optimised',
      )
    if attack in STEPPED and form == 'GCD':
      half, whole = last_doubling(outcomes, attack)
      gain = 100 * (whole.success.mean() - half.success.mean())
      steps, more = reversed(_doubling(study, attack))
      if gain > GAIN:
        say(
          attack,
          f'{name} gains {gain:.0f} points of success from {steps} to {more} '
          'steps: more steps would find more',
        )
    rival = RIVAL.get(attack, attack)
    if rival != attack and rival in study.config.attacks:
      other = outcomes.single[rival, turn].success
      if 100 * (other.mean() - informed.mean()) > GAIN:
        say(
          attack,
          f'{name} has success on {informed.sum()} of {len(informed)} '
          f'pictures, {PAPER_NAME[rival]} on {other.sum()}, and both may '
          'change a picture as much as they need: the former has not converged',
        )
  for smaller, larger in budget_steps(outcomes.single):
    few, many = (
      outcomes.single['pgd', turn].success for turn in (larger, smaller)
    )
    if larger.form == form and few.sum() < many.sum():
      radii = [t.share * study.config.epsilon for t in (larger, smaller)]
      say(
        'pgd',
        f'PGD-U on {form} has success on {few.sum()} of {len(few)} pictures at '
        f'epsilon {radii[0]:.3g} and on {many.sum()} at {radii[1]:.3g}: badly '
        'optimised; the tables count at an epsilon what any smaller one finds',
      )
  return {attack: '; '.join(texts) for attack, texts in found.items()}


def wasteful(outcomes: Outcomes, attack: str, form: str) -> bool:
  """Tells whether an attack's changes are larger than those of a like one."""
  rival = RIVAL.get(attack, attack)
  if (rival, Turn(form)) not in outcomes.single:
    return False
  own, other = (outcomes.single[name, Turn(form)] for name in (attack, rival))
  both = own.success & other.success
  if not both.any():
    return False
  sizes = [np.median(part.l2[both]) for part in (own, other)]
  return bool(sizes[0] > (1 + WASTE / 100) * sizes[1])


def _doubling(study: Study, attack: str) -> list[str]:
  """Gives the steps on GCD, all and half of them, in words."""
  return [
    str(adaptive.steps_of(study.config, attack, Turn('GCD', divisor=divisor)))
    for divisor in (1, 2)
  ]


def saved(outcomes: Outcomes, attack: str) -> float:
  """Measures what the last doubling of steps saved of the size, in per cent.

  0 where it was not measured.
  """
  if attack not in STEPPED or attack not in MINIMAL:
    return 0.0
  half, whole = last_doubling(outcomes, attack)
  both = half.success & whole.success
  if not both.any():
    return 0.0
  less = 1 - np.median(whole.l2[both]) / np.median(half.l2[both])
  return float(max(100 * less, 0.0))


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
      filters={'role': 'white', 'judged': 'float'},
      note=counted
      + ' Of an attack that knows the detectors and one that does not, the '
      'better counts for each picture, and of PGD-U what it finds within '
      'smaller budgets, too. DFool-U walks to the class that it finds without '
      'detectors.',
    ),
    Table(
      'Size of the change with and without GCD',
      SIZE,
      ('attack',),
      'guard',
      filters={'role': 'size'},
      note='Over pictures on which the attack has success both ways, which '
      'favours small changes where the ensemble stops many.',
      decimals=3,
    ),
    Table(
      'How many times larger the change is',
      RATIO,
      ('attack',),
      'guard',
      filters={'role': 'ratio'},
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
      filters={'role': 'budget'},
      note='What is found within a smaller budget counts within a larger one.',
    ),
    Table(
      'Success against the whole defence, detectors and repair',
      record.RATE,
      ('attack',),
      'way',
      filters={'role': 'pipeline'},
      note='Through the repair: the attack goes on where a picture is flagged '
      f'(BPDA, mean over {study.config.num_draws} draws of the mask), judged '
      'by a vote of fresh draws; the suspects are the share '
      f'{alpha:g} of the pixels ({reading}), not chosen for its results. The '
      "paper's white box ignores the repair.",
    ),
    Table(
      'Success on GCD with fewer steps',
      record.RATE,
      ('attack',),
      'steps',
      columns=(*(f'1/{divisor}' for divisor in DIVISORS), 'all'),
      filters={'role': 'steps'},
      control=True,
      note=f'All are {study.config.white_pgd_steps} steps of PGD, each '
      f'{adaptive.STEP:g} of the radius, and {study.config.white_ddn_steps} of '
      'DDN in each search. Where half of them find clearly less, more would '
      'find more.',
    ),
    Table(
      'DET_IS attacked with and without smooth derivatives of ReLU',
      record.RATE,
      ('attack',),
      'gradient',
      filters={'role': 'second_order'},
      control=True,
      note='If the smooth gradient were not better, it might be masked.',
    ),
    Table(
      'The same: size of the change',
      SIZE,
      ('attack',),
      'gradient',
      filters={'role': 'second_order'},
      control=True,
      decimals=3,
    ),
    Table(
      'Success of attacks that do not know the detectors',
      record.RATE,
      ('attack',),
      'guard',
      columns=tuple(FORMS),
      filters={'role': 'blind'},
      control=True,
      note='Ought to be below that of attacks that do.',
    ),
    Table(
      'Success of attacks that know the detectors, after rounding to 8 bit',
      record.RATE,
      ('attack',),
      'guard',
      columns=tuple(FORMS),
      filters={'role': 'white', 'judged': '8 bit'},
      control=True,
    ),
    Table(
      'Clean test pictures that are flagged',
      FLAGGED,
      ('pictures',),
      'guard',
      filters={'role': 'clean'},
    ),
    Table(
      'AUC of the detectors on the validation pictures of all attacks',
      record.AUC,
      ('pictures',),
      'guard',
      filters={'role': 'validation'},
      note=f'Below {WEAK:.0f} no claim is tested.',
    ),
    *record.picture_tables(study)[:1],
  ]
