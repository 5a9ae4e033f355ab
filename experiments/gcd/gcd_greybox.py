"""Table 2: seven detectors against attacks that do not know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common import detectors as common
from experiments.common.controls import clean_against_clean, clean_table
from experiments.common.detectors import REGIMES
from experiments.common.runner import CellCode, ReportParts
from experiments.common.tables import ACCURACY, AUC, estimate_row
from experiments.gcd import baseline_detectors, detectors, report
from experiments.gcd.config import (
  MINIMAL,
  PAPER_NAME,
  Config,
  get_config,
)
from experiments.gcd.detectors import NETWORKS
from experiments.gcd.pictures import RunInputs
from experiments.gcd.plan import plan
from experiments.gcd.run import run_gcd
from jaxadv.detectors.entropy_ensemble import RULES, temperature
from jaxadv.metrics.estimates import (
  Estimate,
  mean,
  over_trainings,
)
from jaxadv.reports import (
  Claim,
  Plot,
  Record,
  Row,
  Table,
  estimate_rows,
  share_row,
)
from jaxadv.reports.verdicts import Comparison, judge
from jaxadv.runs import Cell

__all__ = ['cells', 'get_config', 'plan', 'run']

QUESTION = (
  'Do a detector on gradients and one on pixels together find attacks in L2 '
  'and in Linf, and better than the detectors of others?'
)
# As tables show them; the paper's first, in its order.
SHOWN = {
  'org': 'DET_org',
  'sal': 'DET_sal',
  'is': 'DET_IS',
  'pd': 'DET_PD',
  'tws': 'DET_TWS',
  'mds': 'DET_MDS',
  'gcd': 'GCD',
  'gcd_raw': 'GCD uncalibrated',
  'gcd_max': 'larger of both',
  'gcd_mean': 'mean of both',
  'confidence': '1 - max probability',
  'log_s': 'log S',
  'c1': 'C1 of DET_TWS',
  'c2t': 'C2t of DET_TWS',
  'c2u': 'C2u of DET_TWS',
}
# Learnt from clean pictures alone: the same in all regimes.
UNTAUGHT = ('pd', 'confidence', 'log_s')
# DET_TWS, without C2u as in its authors' released code, and its criteria alone.
CRITERIA = {
  'tws': ('noise', 'targeted'),
  'c1': ('noise',),
  'c2t': ('targeted',),
  'c2u': ('untargeted',),
}
ENSEMBLES = {
  'gcd': ('entropy', True),
  'gcd_raw': ('entropy', False),
  'gcd_max': ('max', True),
  'gcd_mean': ('mean', True),
}
# With several trainings.
TRAINED = (*NETWORKS, *ENSEMBLES)
# How many times as large the changes of DDN are made, to see whether DET_MDS
# finds changes by their size.
TIMES = (1, 4, 16)
# What the issue of detecting asks of a detector.
HIGH, ENOUGH = 95.0, 97.0


def cells(config: Config) -> list[Cell]:
  """Lists the cells of a run: every detector but those made of others.

  Networks have one for each training.
  """
  return [
    Cell(f'{name}-seed{seed}', {'detector': name, 'seed': seed})
    for name in SHOWN
    if name not in ENSEMBLES
    for seed in range(config.num_seeds if name in NETWORKS else 1)
  ]


def run(config: Config, workdir: str) -> Record | None:
  """Runs the experiment and writes its report; see `run_gcd`."""
  return run_gcd(
    config,
    workdir,
    name='gcd_greybox',
    question=QUESTION,
    cells=cells(config),
    code=CellCode(run_cell),
    describe=describe,
  )


def run_cell(
  inputs: RunInputs, cell: Cell, report_progress
) -> dict[str, np.ndarray]:
  """Scores test pictures by one training of a detector in all regimes.

  Returns:
    {'REGIME/ATTACK/clean' and '.../attacked': float32[n], and of detectors
    that are parts of the ensemble '.../valid' and '.../valid_attacked'}.
  """
  name, every = cell.settings['detector'], inputs.config.attack_names
  scores: dict[str, np.ndarray] = {}

  def keep(regime, attack, clean, attacked, **more):
    parts = {'clean': clean, 'attacked': attacked} | more
    scores.update({f'{regime}/{attack}/{k}': v for k, v in parts.items()})

  if name in UNTAUGHT:
    report_progress(f'detector {SHOWN[name]}', 0.0)
    found = (
      baseline_detectors.density_scores(inputs, every)
      if name == 'pd'
      else detectors.trivial_scores(inputs, name, ('clean', *every))
    )
    for regime in REGIMES:
      for attack in every:
        keep(regime, attack, found['clean'], found[attack])
    return scores
  mds = baseline_detectors.mahalanobis_of(inputs) if name == 'mds' else None
  trainable = common.trainable_attacks(inputs)
  # The paper itself shows that saliency adds nothing: once is enough.
  regimes = REGIMES[:1] if name == 'sal' else REGIMES
  for number, regime in enumerate(regimes):
    for attack, trained_on in common.training_attacks(
      inputs.config.attack_names, regime
    ).items():
      trained_on = tuple(a for a in trained_on if a in trainable)
      if not trained_on:
        continue
      report_progress(f'{cell.name} {regime} {attack}', number / len(regimes))
      tested = every if regime == 'pooled' else (attack,)
      if mds:
        found = baseline_detectors.mahalanobis_scores(
          inputs, mds, trained_on, tested
        )
        keep(regime, attack, found['clean'], found[attack])
        continue
      if name in CRITERIA:
        parts = CRITERIA[name]
        found = baseline_detectors.tws_scores(
          inputs, parts, trained_on, (attack,)
        )
        keep(regime, attack, found['clean'], found[attack])
        continue
      learnt = detectors.learn(
        inputs, name, trained_on, tested, cell.settings['seed']
      )
      keep(
        regime,
        attack,
        learnt.scores['clean'],
        learnt.scores[attack],
        valid=learnt.valid,
        valid_attacked=learnt.valid_attacked,
      )
  if mds and 'ddn' in trainable:
    for times in TIMES:
      report_progress(f'{SHOWN[name]} on {times} times the change of DDN', 1.0)
      larger = baseline_detectors.enlarged(inputs, 'ddn', times)
      found = baseline_detectors.mahalanobis_scores(
        larger, mds, ('ddn',), ('ddn',)
      )
      keep('enlarged', times, found['clean'], found['ddn'])
  return scores


# What `run_cell` gave, of every training of every detector.
Trainings = dict[str, list[Mapping[str, np.ndarray]]]


def with_ensembles(found: Mapping[str, Mapping[str, np.ndarray]]) -> Trainings:
  """Gathers the trainings of detectors, and puts ensembles beside them.

  Args:
    found: {cell: what `run_cell` gave}.

  Returns:
    {detector or ensemble: scores of each training}. The first trainings of
    both members make the first ensemble, and so on.
  """
  gathered: Trainings = {}
  for cell, scores in found.items():
    gathered.setdefault(cell.rpartition('-seed')[0], []).append(scores)
  pairs = zip(gathered['is'], gathered['org'], strict=True)
  for made in [_ensembles(*pair) for pair in pairs]:
    for name, scores in made.items():
      gathered.setdefault(name, []).append(scores)
  return gathered


def _ensembles(
  first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
  """Combines one training of DET_IS with one of DET_org."""
  made: dict[str, dict[str, np.ndarray]] = {name: {} for name in ENSEMBLES}
  places = {key.rpartition('/')[0] for key in first if key in second}
  for place in sorted(places):
    heat = [
      temperature(part[f'{place}/valid'], part[f'{place}/valid_attacked'])
      for part in (first, second)
    ]
    for name, (rule, calibrated) in ENSEMBLES.items():
      for side in ('clean', 'attacked'):
        logits: list[Any] = [
          part[f'{place}/{side}'] / (t if calibrated else 1)
          for part, t in zip((first, second), heat, strict=True)
        ]
        made[name][f'{place}/{side}'] = np.asarray(RULES[rule](*logits))
  return made


def areas_of(
  inputs: RunInputs, trainings: Trainings
) -> dict[tuple[str, str, str], Estimate]:
  """Computes {(detector, regime, attack): AUC}, with the printed number."""
  paper, dataset = report.printed('table2'), report.paper_dataset(inputs)

  def area(name: str, regime: str, attack: str) -> Estimate:
    place = (dataset, PAPER_NAME[attack], SHOWN[name])
    printed = paper.get(place) if regime == 'per_attack' else None
    each = [
      report.attack_auc(
        inputs,
        attack,
        scores[f'{regime}/{attack}/clean'],
        scores[f'{regime}/{attack}/attacked'],
      )
      for scores in trainings[name]
    ]
    if name not in TRAINED:
      return each[0]._replace(paper=printed)
    return over_trainings(each, paper=printed)

  return {
    (name, regime, attack): area(name, regime, attack)
    for name in SHOWN
    for regime in REGIMES
    for attack in inputs.config.attack_names
    if f'{regime}/{attack}/clean' in trainings[name][0]
    and report.succeeded(inputs, attack)[: inputs.config.tws_pictures].any()
  }


def describe(inputs: RunInputs, found: dict[str, Any]) -> ReportParts:
  """Says how the detectors did."""
  trainings = with_ensembles(found)
  areas = areas_of(inputs, trainings)
  silent = [
    PAPER_NAME[a]
    for a in inputs.config.attack_names
    if not common.is_trainable(inputs, [a])
  ]
  return ReportParts(
    claims=claims(inputs, trainings, areas),
    rows=detection_rows(inputs, trainings, areas)
    + control_rows(inputs, trainings)
    + size_rows(inputs, trainings['mds'][0])
    + density_rows(inputs)
    + report.picture_rows(inputs),
    answer=answer(areas),
    tables=tables(inputs),
    figures=figures(areas),
    arrays=arrays(inputs, trainings, areas),
    warnings=[
      f'{name} had no success on the pictures that detectors learn from: no '
      'detector of its own'
      for name in silent
    ],
  )


def detection_rows(inputs, trainings, areas) -> list[Row]:
  """Gives the AUCs with the printed ones, and how the classifier did."""
  paper, dataset = report.printed('table2'), report.paper_dataset(inputs)
  rows = []
  # Detectors differ in how much training moves them: each has its own variance.
  for own in dict.fromkeys((regime, name) for name, regime, _ in areas):
    places = [place for place in areas if (place[1], place[0]) == own]
    rows += estimate_rows(
      [
        {
          'role': 'detection',
          'training': regime.replace('_', ' '),
          'detector': SHOWN[name],
          'attack': PAPER_NAME[attack],
        }
        for name, regime, attack in places
      ],
      AUC,
      [areas[place] for place in places],
      [tested(inputs, trainings, *place) for place in places],
    )
  for attack in inputs.config.attack_names:
    rows.append(
      share_row(
        {'role': 'unprotected', 'attack': PAPER_NAME[attack]},
        ACCURACY,
        report.unprotected(inputs, attack),
        paper=paper.get((dataset, PAPER_NAME[attack], 'F_accuracy')),
      )
    )
  return rows


def tested(
  inputs: RunInputs, trainings: Trainings, name, regime, attack
) -> int:
  """Counts the attacked pictures that a detector is tested on."""
  count = len(trainings[name][0][f'{regime}/{attack}/clean'])
  return int(report.succeeded(inputs, attack)[:count].sum())


def control_rows(inputs: RunInputs, trainings: Trainings) -> list[Row]:
  """Compares every other clean picture with the rest: nothing to tell."""
  sources = inputs.clean['test'].source
  keys, found, numbers = [], [], []
  for name, each in trainings.items():
    place = next((k for k in each[0] if k.endswith('/clean')), None)
    if place is None:
      continue
    clean = [scores[place] for scores in each]
    own = sources[: len(clean[0])]
    halves = [clean_against_clean(part, own) for part in clean]
    keys.append(
      {'role': 'control', 'detector': SHOWN[name], 'pictures': 'clean'}
    )
    found.append(over_trainings(halves) if name in TRAINED else halves[0])
    numbers.append(len(own) // 2)
  return estimate_rows(keys, AUC, found, numbers)


def size_rows(inputs: RunInputs, scores: Mapping[str, np.ndarray]) -> list[Row]:
  """Gives the AUC of DET_MDS on DDN's changes made larger, learnt on them."""
  rows = []
  if 'enlarged/1/clean' in scores and report.succeeded(inputs, 'ddn').any():
    for times in TIMES:
      clean, attacked = (
        scores[f'enlarged/{times}/{side}'] for side in ('clean', 'attacked')
      )
      estimate = report.attack_auc(inputs, 'ddn', clean, attacked)
      keys = {'role': 'size', 'detector': SHOWN['mds'], 'change': f'x {times}'}
      n = int(report.succeeded(inputs, 'ddn').sum())
      rows.append(estimate_row(keys, AUC, estimate, n=n))
  return rows


def density_rows(inputs: RunInputs) -> list[Row]:
  """Gives the bits per dimension of PixelCNN++."""
  _, _, bits = baseline_detectors.density(inputs)
  return [
    Row(
      {'role': 'density', 'pictures': side},
      'bits per dimension',
      value,
      n=min(
        baseline_detectors.NUM_RANKED,
        len(
          baseline_detectors.density_pictures(inputs).labels
          if side == 'train'
          else inputs.clean['test'].labels
        ),
      ),
    )
    for side, value in bits.items()
    if side != 'last epoch'
  ]


def claims(inputs: RunInputs, trainings: Trainings, areas) -> list[Claim]:
  """Judges the paper's claims."""

  def ask(text, comparisons, *names, **more) -> Claim:
    """Judges, by as many pictures as these detectors are all tested on."""
    counts = [
      tested(inputs, trainings, *place) for place in areas if place[0] in names
    ]
    return judge(text, comparisons, n=min(counts, default=None), **more)

  attacks = list(dict.fromkeys(attack for *_, attack in areas))
  own = {
    (name, attack): estimate
    for (name, regime, attack), estimate in areas.items()
    if regime == 'per_attack'
  }
  both = lambda name: [a for a in attacks if (name, a) in own]
  budget = [a for a in both('org') if a not in MINIMAL]
  minimal = [a for a in both('org') if a in MINIMAL]
  every = both('gcd')
  others = ('org', 'sal', 'pd', 'tws', 'mds')
  left_out = [a for a in every if ('gcd', 'leave_one_out', a) in areas]
  return [
    ask(
      f'A network on pixels finds Linf attacks (AUC above {HIGH:.0f})',
      [
        Comparison(
          f'DET_org on {PAPER_NAME[a]} minus {HIGH:.0f}', own['org', a] - HIGH
        )
        for a in budget
      ],
      'org',
    ),
    ask(
      'Gradients and pixels complement each other: DET_IS is better on L2 '
      'attacks, DET_org on Linf attacks',
      [
        Comparison(
          f'{PAPER_NAME[a]}: DET_IS minus DET_org', own['is', a] - own['org', a]
        )
        for a in minimal
      ]
      + [
        Comparison(
          f'{PAPER_NAME[a]}: DET_org minus DET_IS', own['org', a] - own['is', a]
        )
        for a in budget
      ],
      'is',
      'org',
    ),
    ask(
      f'The ensemble finds all attacks (AUC above {ENOUGH:.0f})',
      [
        Comparison(
          f'GCD on {PAPER_NAME[a]} minus {ENOUGH:.0f}', own['gcd', a] - ENOUGH
        )
        for a in every
      ],
      'gcd',
    ),
    ask(
      'The ensemble is better than every other detector (mean of the attacks)',
      [
        Comparison(
          f'GCD minus {SHOWN[name]}',
          mean([own['gcd', a] - own[name, a] for a in every]),
        )
        for name in others
        if every and all((name, a) in own for a in every)
      ],
      'gcd',
      *others,
      generous=baseline_detectors.density_doubts(inputs),
      once=['PixelCNN++'],
    ),
    ask(
      'The network on gradients is better than S alone on L2 attacks',
      [
        Comparison(
          f'{PAPER_NAME[a]}: DET_IS minus log S', own['is', a] - own['log_s', a]
        )
        for a in minimal
      ],
      'is',
      'log_s',
    ),
    ask(
      'The ensemble finds attacks that it has not learnt as well (not claimed; '
      'what awaits it once deployed)',
      [
        Comparison(
          f'{PAPER_NAME[a]}: unseen minus {HIGH:.0f}',
          areas['gcd', 'leave_one_out', a] - HIGH,
        )
        for a in left_out
      ],
      'gcd',
    ),
  ]


def answer(areas) -> str:
  """Answers the question in a sentence."""
  average = lambda name, regime, kind: np.mean(
    [
      estimate.value
      for (n, r, a), estimate in areas.items()
      if (n, r) == (name, regime) and (a in MINIMAL) == kind
    ]
    or [np.nan]
  )
  parts = [
    f'{SHOWN[name]} {average(name, "per_attack", True):.1f} % on L2 and '
    f'{average(name, "per_attack", False):.1f} % on Linf attacks'
    for name in ('is', 'org', 'gcd')
  ]
  return (
    f'Mean AUC on attacks that were learnt: {"; ".join(parts)}. On attacks '
    f'that were not: GCD {average("gcd", "leave_one_out", True):.1f} % and '
    f'{average("gcd", "leave_one_out", False):.1f} %.'
  ).replace('nan', '–')


def tables(inputs: RunInputs) -> list[Table]:
  """Lays out the tables."""
  names = report.columns(inputs, inputs.config.attack_names)
  return [
    Table(
      'Detection (Table 2)',
      AUC,
      ('detector',),
      'attack',
      split='training',
      columns=names,
      filters={'role': 'detection'},
      note='Attacked pictures rounded to 8 bit, those that the attack changed '
      'with success before rounding. Per attack: learnt on the attack it is '
      'tested on. DET_PD and the scores without training are the same in all '
      'three. DET_TWS has C1 and C2t; C2u stands alone. Values of networks: '
      f'mean over {inputs.config.num_seeds} trainings.',
    ),
    Table(
      'Accuracy of the unprotected classifier on the pictures of the attacks',
      ACCURACY,
      ('role',),
      'attack',
      columns=names,
      filters={'role': 'unprotected'},
      note='All pictures were classified correctly when clean; after rounding.',
    ),
    *report.picture_tables(inputs),
    Table(
      'PixelCNN++',
      'bits per dimension',
      ('role',),
      'pictures',
      filters={'role': 'density'},
      decimals=3,
    ),
    Table(
      'DET_MDS on changes of DDN made larger',
      AUC,
      ('detector',),
      'change',
      filters={'role': 'size'},
      note='Learnt on changes of that size: a detector that finds only the '
      'larger ones sees their size.',
    ),
    clean_table(AUC, 'detector'),
  ]


def figures(areas) -> list[Plot]:
  """Lays out the figures."""
  attacks = list(dict.fromkeys(a for n, r, a in areas if r == 'per_attack'))
  drawn = ('org', 'is', 'gcd', 'pd', 'tws', 'mds', 'log_s')
  return [
    Plot(
      'roc',
      'roc_curves',
      'ROC curves of the detectors by their first training, each learnt on the '
      'attack it is tested on (DET_PD and log S learn no attack); the tables '
      'give means over the trainings.',
      {
        'panels': {
          PAPER_NAME[attack]: {
            SHOWN[name]: [f'{name}/{attack}/clean', f'{name}/{attack}/attacked']
            for name in drawn
            if (name, 'per_attack', attack) in areas
          }
          for attack in attacks
        }
      },
    ),
    Plot(
      'bars',
      'interval_bars',
      'AUC of the ensemble by what it has learnt: the attack it is tested on, '
      'all attacks, or all others.',
      {
        'metric': AUC,
        'category': 'attack',
        'series': 'training',
        'filters': {'role': 'detection', 'detector': SHOWN['gcd']},
        'title': 'GCD',
      },
    ),
  ]


def arrays(
  inputs: RunInputs, trainings: Trainings, areas
) -> dict[str, np.ndarray]:
  """Gives the scores behind the figures, of the first training."""
  found = {}
  for name, regime, attack in areas:
    if regime == 'per_attack':
      place = f'{regime}/{attack}'
      own = trainings[name][0]
      clean, attacked = own[f'{place}/clean'], own[f'{place}/attacked']
      rows = report.succeeded(inputs, attack)[: len(attacked)]
      found[f'{name}/{attack}/clean'] = clean
      found[f'{name}/{attack}/attacked'] = attacked[rows]
  return found
