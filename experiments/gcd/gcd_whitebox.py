"""Tables 3 and 4, Figure 5: attacks that know the detectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np

from experiments.common.runner import CellCode, ReportParts
from experiments.common.tables import AUC, RATE
from experiments.gcd import report, white_box
from experiments.gcd.config import (
  MINIMAL,
  PAPER_NAME,
  Config,
  get_config,
)
from experiments.gcd.pictures import RunInputs
from experiments.gcd.plan import plan
from experiments.gcd.run import run_gcd
from experiments.gcd.white_box import (
  ACTIVE_DETECTORS,
  DIVISORS,
  SHARES,
  STEPPED,
  AttackRun,
  WhiteBox,
  runs_of,
)
from experiments.gcd.white_figures import (
  SHOWN,
  curve_drawings,
  curves_of,
  example_drawing,
  example_pictures,
)
from experiments.gcd.white_outcomes import (
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
from jaxadv.runs import Cell

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
LIKE_ATTACK = {
  'carlini_wagner': 'ddn',
  'carlini_wagner_t': 'ddn_t',
  'deepfool': 'ddn',
}
# The tables' names of the guards; DET_org they leave out.
PRINTED_RATE = {active: active.replace(' ', '_') for active in SHOWN}
WAYS = {
  'past': 'past the detectors',
  'through': 'through the repair',
  'either': 'either of both',
}


def cells(config: Config) -> list[Cell]:
  """Lists the cells of a run: every attack, and two with the probes."""
  names = list(config.attack_names)
  if set(PROBES) & set(config.attack_names):
    names += ['second_order', 'pipeline']
  return [Cell(name, {'attack': name}) for name in names]


def run(config: Config, workdir: str) -> Record | None:
  """Runs the experiment and writes its report; see `run_gcd`."""
  return run_gcd(
    config,
    workdir,
    name='gcd_whitebox',
    question=QUESTION,
    cells=cells(config),
    code=CellCode(run_cell),
    describe=describe,
  )


def run_cell(
  inputs: RunInputs, cell: Cell, report_progress
) -> dict[str, np.ndarray]:
  """Runs a white-box attack: {'TURN/NAME': array}, NAME as of `measured`.

  TURN is the number of the turn, or the attack in a cell of probes.
  """
  report_progress('detectors', 0.0)
  white = white_box.white_box(inputs)
  probes = [attack for attack in PROBES if attack in inputs.config.attack_names]
  report_progress(f'white box: {PAPER_NAME.get(cell.name, cell.name)}', 0.0)
  if cell.name == 'second_order':
    plain = white._replace(
      guards=tuple(dataclasses.replace(g, smooth=False) for g in white.guards)
    )
    attack_run = [AttackRun('DET_IS')]
    parts = {
      attack: white_box.attack_white(inputs, plain, attack, attack_run)[0]
      for attack in probes
    }
  elif cell.name == 'pipeline':
    parts = {
      attack: white_box.attack_pipeline(inputs, white, attack)
      for attack in probes
    }
  else:
    attack_runs = runs_of(cell.name)
    found = white_box.attack_white(inputs, white, cell.name, attack_runs)
    parts = {str(number): part for number, part in enumerate(found)}
  return {
    f'{part}/{name}': array[: report.NUM_EXAMPLES]
    if name == 'images'
    else array
    for part, arrays in parts.items()
    for name, array in arrays.items()
  }


def describe(inputs: RunInputs, found: dict[str, Any]) -> ReportParts:
  """Says what the attacks came to."""
  white = white_box.white_box(inputs)
  flags = detector_rows(inputs, white)
  if not white.unflagged_when_clean.any():
    return ReportParts(
      claims=[],
      rows=flags + report.picture_rows(inputs),
      answer='It cannot be told: the detectors flag every clean picture.',
      tables=tables(inputs),
      figures=[],
      arrays={},
      warnings=[
        'DET_IS or DET_org flags each of the '
        f'{len(white.unflagged_when_clean)} clean pictures; no success of an '
        'attack could be counted'
      ],
    )
  outcomes = outcomes_of(inputs, white, found)
  pairs = sizes_of(inputs, outcomes)
  curves = curves_of(inputs, outcomes)
  return ReportParts(
    claims=claims(inputs, white, outcomes, pairs),
    rows=[
      *success_rows(inputs, outcomes),
      *size_rows(pairs),
      *probe_rows(outcomes),
      *flags,
      *report.picture_rows(inputs),
    ],
    answer=answer(inputs, outcomes),
    tables=tables(inputs),
    figures=[
      *curve_drawings(inputs, curves),
      *example_drawing(inputs, white, found),
    ],
    arrays=curves | example_pictures(inputs, white, found),
    warnings=warnings(inputs, white, outcomes),
  )


def detector_rows(inputs: RunInputs, white: WhiteBox) -> list[Row]:
  """Says how good the detectors are, and how many clean pictures they flag."""
  n = len(inputs.clean['test'].labels)
  estimates, sampling, keys = [], [], []
  for active in white.areas:
    shares = [
      share_estimate(flags, inputs.clean['test'].source)
      for flags in white.flagged[active]
    ]
    estimates.append(over_trainings(shares))
    sampling.append(share_interval(round(white.flagged[active].mean() * n), n))
    keys.append({'role': 'clean', 'guard': active, 'pictures': 'clean'})
  areas = [
    Row(
      {'role': 'validation', 'guard': active, 'pictures': 'validation'},
      AUC,
      float(areas.mean()),
    )
    for active, areas in white.areas.items()
  ]
  return [*estimate_rows(keys, FLAGGED, estimates, n, sampling), *areas]


def success_rows(inputs: RunInputs, outcomes: Outcomes) -> list[Row]:
  """Gives success rates, of informed attacks and of blind ones."""
  printed = report.printed('table3')
  white, rounded, budgets, steps = [], [], [], []
  for (attack, attack_run), outcome in outcomes.adaptive.items():
    keys = {'attack': PAPER_NAME[attack], 'guard': attack_run.active}
    if (
      attack == 'pgd'
      and attack_run.divisor == 1
      and attack_run.active != 'DET_org'
    ):
      epsilon = f'{attack_run.share * inputs.config.white_epsilon:.3g}'
      budget = {
        'role': 'budget',
        'guard': attack_run.active,
        'epsilon': epsilon,
      }
      budgets.append((budget, outcome.success))
    if attack_run == AttackRun(attack_run.active):
      role = {'role': 'white'} | keys
      white.append((role | {'judged': 'float'}, outcome.success))
      rounded.append((role | {'judged': '8 bit'}, outcome.success_uint8))
  for (attack, attack_run), outcome in outcomes.single.items():
    if (
      attack in STEPPED and attack_run.active == 'GCD' and attack_run.share == 1
    ):
      keys = {'role': 'steps', 'attack': PAPER_NAME[attack]}
      share = 'all' if attack_run.divisor == 1 else f'1/{attack_run.divisor}'
      steps.append((keys | {'steps': share}, outcome.success))
  dataset = report.paper_dataset(inputs)
  paper = [
    printed.get((dataset, keys['attack'], PRINTED_RATE.get(keys['guard'], '')))
    for keys, _ in white
  ]
  oblivious = [
    (
      {
        'role': 'blind',
        'attack': PAPER_NAME[attack],
        'guard': attack_run.active,
      },
      outcome.success,
    )
    for (attack, attack_run), outcome in outcomes.oblivious.items()
    if attack_run == AttackRun(attack_run.active)
  ]
  return [
    *rate_rows(outcomes, white, paper),
    *rate_rows(outcomes, rounded),
    *rate_rows(outcomes, budgets),
    *rate_rows(outcomes, steps),
    *rate_rows(outcomes, oblivious),
  ]


def size_rows(pairs: dict[str, Pair]) -> list[Row]:
  """Gives the sizes of changes with and without detectors."""
  sizes = [
    (
      {'role': 'size', 'attack': PAPER_NAME[attack], 'guard': active},
      estimate,
      n,
    )
    for attack, (medians, n) in pairs.items()
    for active, estimate in medians.items()
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
    smooth = outcomes.single[attack, AttackRun('DET_IS')]
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
  inputs: RunInputs, white: WhiteBox, outcomes: Outcomes, pairs: dict[str, Pair]
) -> list[Claim]:
  """Judges what the paper says of the white box.

  An attack that is badly optimised favours what it is tried on: the ensemble,
  or what the ensemble is compared with.
  """
  printed = report.printed('table3')

  def rate(attack: str, active: str) -> Estimate:
    place = (report.paper_dataset(inputs), PAPER_NAME[attack])
    return outcomes.rate(
      outcomes.adaptive[attack, AttackRun(active)].success,
      printed.get((*place, PRINTED_RATE[active])),
    )

  def unfit(*forms: str) -> list[str]:
    return [
      f'{active} has an AUC of {white.areas[active].mean():.1f} on the '
      f'validation pictures, below {WEAK:.0f}'
      for active in forms
      if white.areas[active].mean() < WEAK
    ]

  percent = lambda factor: 100 * np.log(factor)
  attacks, n = inputs.config.attack_names, len(outcomes.sources)
  slow = {
    active: lagging(inputs, outcomes, active) for active in ACTIVE_DETECTORS
  }
  fit = lambda attack, *forms: (
    not any(attack in slow[active] for active in forms)
  )
  compared = [a for a in attacks if fit(a, 'DET_IS', 'GCD')]
  sized = {
    attack: pair
    for attack, pair in pairs.items()
    if fit(attack, *COMPARED)
    and not any(wasteful(outcomes, attack, active) for active in COMPARED)
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


def answer(inputs: RunInputs, outcomes: Outcomes) -> str:
  """Answers the question in a sentence."""
  means = {
    active: 100
    * np.mean(
      [
        outcomes.adaptive[a, AttackRun(active)].success.mean()
        for a in inputs.config.attack_names
      ]
    )
    for active in ACTIVE_DETECTORS
  }
  parts = [f'{mean:.0f} % ({active})' for active, mean in means.items()]
  return (
    f'Mean success of {len(inputs.config.attack_names)} white-box attacks on '
    f'{len(outcomes.sources)} pictures: {", ".join(parts)}.'
  )


def warnings(
  inputs: RunInputs, white: WhiteBox, outcomes: Outcomes
) -> list[str]:
  """Says where figures may mislead."""
  found = []
  counted = white.unflagged_when_clean
  if not counted.all():
    found.append(
      f'only {counted.sum()} of the {len(counted)} attacked pictures are not '
      'flagged when clean; the others count nowhere'
    )
  for attack, plain in outcomes.plain.items():
    smooth = outcomes.single[attack, AttackRun('DET_IS')]
    if masked(smooth, plain, sized=attack in MINIMAL):
      found.append(
        f'{PAPER_NAME[attack]} on DET_IS: the smooth gradient does not beat '
        f'the plain one ({summary(smooth)} against {summary(plain)}), so the '
        'gradient may be masked and success be understated'
      )
  for active in white.areas:
    found += lagging(inputs, outcomes, active).values()
  for attack in STEPPED:
    if attack in inputs.config.attack_names and saved(outcomes, attack) > GAIN:
      found.append(
        f'{PAPER_NAME[attack]} on GCD needs {saved(outcomes, attack):.0f} % '
        f'less L2 after {" than after ".join(_doubling(inputs, attack))} '
        'steps: more steps would need less'
      )
  return found


def lagging(
  inputs: RunInputs, outcomes: Outcomes, active: str
) -> dict[str, str]:
  """Says which attacks on a guard find too little: {attack: why}.

  What such an attack does not find says nothing of the guard.
  """
  found: dict[str, list[str]] = {}
  say = lambda attack, text: found.setdefault(attack, []).append(text)
  for attack in inputs.config.attack_names:
    name, attack_run = f'{PAPER_NAME[attack]} on {active}', AttackRun(active)
    adaptive = outcomes.single[attack, attack_run].success
    oblivious = outcomes.oblivious[attack, attack_run].success
    if oblivious.sum() > adaptive.sum():
      say(
        attack,
        f'{PAPER_NAME[attack]} that does not know {active} beats the one that '
        f'does ({oblivious.sum()} against {adaptive.sum()} of {len(oblivious)} '
        'pictures): the latter is badly optimised',
      )
    if attack in STEPPED and active == 'GCD':
      half, whole = last_doubling(outcomes, attack)
      gain = 100 * (whole.success.mean() - half.success.mean())
      steps, more = reversed(_doubling(inputs, attack))
      if gain > GAIN:
        say(
          attack,
          f'{name} gains {gain:.0f} points of success from {steps} to {more} '
          'steps: more steps would find more',
        )
    alike = LIKE_ATTACK.get(attack, attack)
    if alike != attack and alike in inputs.config.attack_names:
      other = outcomes.single[alike, attack_run].success
      if 100 * (other.mean() - adaptive.mean()) > GAIN:
        say(
          attack,
          f'{name} has success on {adaptive.sum()} of {len(adaptive)} '
          f'pictures, {PAPER_NAME[alike]} on {other.sum()}, and both may '
          'change a picture as much as they need: the former has not converged',
        )
  for smaller, larger in budget_steps(outcomes.single):
    few, many = (
      outcomes.single['pgd', attack_run].success
      for attack_run in (larger, smaller)
    )
    if larger.active == active and few.sum() < many.sum():
      radii = [t.share * inputs.config.white_epsilon for t in (larger, smaller)]
      say(
        'pgd',
        f'PGD-U on {active} has success on {few.sum()} of {len(few)} pictures '
        f'at epsilon {radii[0]:.3g} and on {many.sum()} at {radii[1]:.3g}: '
        'badly optimised; the tables count at an epsilon what any smaller one '
        'finds',
      )
  return {attack: '; '.join(texts) for attack, texts in found.items()}


def wasteful(outcomes: Outcomes, attack: str, active: str) -> bool:
  """Tells whether an attack's changes are larger than those of a like one."""
  alike = LIKE_ATTACK.get(attack, attack)
  if (alike, AttackRun(active)) not in outcomes.single:
    return False
  own, other = (
    outcomes.single[name, AttackRun(active)] for name in (attack, alike)
  )
  both = own.success & other.success
  if not both.any():
    return False
  sizes = [np.median(part.l2[both]) for part in (own, other)]
  return bool(sizes[0] > (1 + WASTE / 100) * sizes[1])


def _doubling(inputs: RunInputs, attack: str) -> list[str]:
  """Gives the steps on GCD, all and half of them, in words."""
  return [
    str(
      white_box.steps_of(
        inputs.config, attack, AttackRun('GCD', divisor=divisor)
      )
    )
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


def tables(inputs: RunInputs) -> list[Table]:
  """Lays out the tables."""
  reading, alpha = white_box.repair_setting(inputs.config)
  settings = {a: inputs.config.white_settings(a) for a in ('pgd', 'ddn')}
  steps = {a: own['num_steps'] for a, own in settings.items()}
  step_share = settings['pgd']['step_size'] / settings['pgd']['epsilon']
  counted = (
    'Counted over pictures that neither detector flags when clean; success: '
    'not flagged, and the label changed (targeted: the target reached).'
  )
  return [
    Table(
      'Success of attacks that know the detectors',
      RATE,
      ('attack',),
      'guard',
      columns=tuple(ACTIVE_DETECTORS),
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
      RATE,
      ('guard',),
      'epsilon',
      columns=tuple(
        f'{share * inputs.config.white_epsilon:.3g}' for share in (*SHARES, 1)
      ),
      filters={'role': 'budget'},
      note='What is found within a smaller budget counts within a larger one.',
    ),
    Table(
      'Success against the whole defence, detectors and repair',
      RATE,
      ('attack',),
      'way',
      filters={'role': 'pipeline'},
      note='Through the repair: the attack goes on where a picture is flagged '
      f'(BPDA, mean over {inputs.config.num_draws} draws of the mask), judged '
      'by a vote of fresh draws; the suspects are the share '
      f'{alpha:g} of the pixels ({reading}), not chosen for its results. The '
      "paper's white box ignores the repair.",
    ),
    Table(
      'Success on GCD with fewer steps',
      RATE,
      ('attack',),
      'steps',
      columns=(*(f'1/{divisor}' for divisor in DIVISORS), 'all'),
      filters={'role': 'steps'},
      control=True,
      note=f'All are {steps["pgd"]} steps of PGD, each {step_share:g} of the '
      f'radius, and {steps["ddn"]} of DDN in each search. Where half of them '
      'find clearly less, more would find more.',
    ),
    Table(
      'DET_IS attacked with and without smooth derivatives of ReLU',
      RATE,
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
      RATE,
      ('attack',),
      'guard',
      columns=tuple(ACTIVE_DETECTORS),
      filters={'role': 'blind'},
      control=True,
      note='Ought to be below that of attacks that do.',
    ),
    Table(
      'Success of attacks that know the detectors, after rounding to 8 bit',
      RATE,
      ('attack',),
      'guard',
      columns=tuple(ACTIVE_DETECTORS),
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
      AUC,
      ('pictures',),
      'guard',
      filters={'role': 'validation'},
      note=f'Below {WEAK:.0f} no claim is tested.',
    ),
    *report.picture_tables(inputs)[:1],
  ]
