"""Figure 6: how much to mask, in both readings of the masking rate alpha."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from experiments.common.runner import CellCode, ReportParts
from experiments.common.tables import ACCURACY
from experiments.gcd import detectors, repair, report
from experiments.gcd.config import PAPER_NAME, Config, get_config
from experiments.gcd.pictures import RunInputs
from experiments.gcd.plan import plan
from experiments.gcd.repair import READINGS, UNMASKED, named
from experiments.gcd.run import run_gcd
from jaxadv.classifier import predict
from jaxadv.metrics.estimates import intervals, mean, share_estimate
from jaxadv.metrics.intervals import mean_interval
from jaxadv.reports import (
  Claim,
  Plot,
  Record,
  Row,
  Table,
  estimate_rows,
  share_rows,
)
from jaxadv.reports.verdicts import Comparison, judge
from jaxadv.runs import Cell

__all__ = ['cells', 'get_config', 'plan', 'run']

QUESTION = (
  'How many pixels should the rectifier suspect, and which reading of the '
  "masking rate alpha gives the paper's Figure 6?"
)
MEANING = {
  'threshold': 'alpha as a threshold (the formula)',
  'fraction': 'alpha as a fraction of pixels (the text)',
}
# Where Figure 6 of the paper peaks, untargeted and targeted.
PAPER_ALPHA = {
  'MNIST': (0.55, 0.60),
  'CIFAR-10': (0.65, 0.70),
  'ImageNet20': (0.45, 0.35),
}
# What every masking rate is compared with.
REFERENCES = {
  'unprotected': 'unprotected',
  f'{named(UNMASKED)}/labels': 'fine-tuned, not masked',
}
GOALS = ('untargeted', 'targeted')
SUSPECT = 'pixels that are suspect (%)'
REPLACED = 'pixels that a draw replaces (%)'
BEST = 'best alpha of those tried'


def cells(config: Config) -> list[Cell]:
  """Lists the cells of a run: clean pictures, and those of every attack."""
  return [
    Cell(kind, {'kind': kind}) for kind in ('clean', *config.attack_names)
  ]


def run(config: Config, workdir: str) -> Record | None:
  """Runs the experiment and writes its report; see `run_gcd`."""
  return run_gcd(
    config,
    workdir,
    name='gcd_alpha',
    question=QUESTION,
    cells=cells(config),
    code=CellCode(run_cell),
    describe=describe,
  )


def run_cell(
  inputs: RunInputs, cell: Cell, report_progress
) -> dict[str, np.ndarray]:
  """Repairs the test pictures of a kind at every masking rate.

  Returns:
    'unprotected', int[N], the victim's labels; and for every setting and S
    trainings 'READING/ALPHA/labels', int[S, N], 'suspect' and 'replaced',
    float[S, N]; of clean pictures also 'kept', float[S], the validation
    pictures that f_rec keeps, and of attacked ones 'valid', bool[S, V], those
    of validation that are recovered.
  """
  images = repair.side_images(inputs, cell.name, 'test')
  source = inputs.clean['test'].source
  found: dict[str, Any] = {
    'unprotected': predict(
      inputs.victim.classifier, images, inputs.config.batch_size
    ).argmax(-1)
  }
  each: dict[str, list[Any]] = {}
  for seed in range(inputs.config.num_seeds):
    report_progress('detectors', 0.0)
    score = repair.pooled_score(inputs, 'ensemble', seed)
    classifiers = repair.all_fine_tuned(inputs, score, seed, report_progress)
    report_progress(f'rectifier on {cell.name}', 0.0)
    seen = repair.logits_and_gradients(score, images)
    hits = (
      repair.valid_hits(inputs, cell.name, score, classifiers, report_progress)
      if cell.name != 'clean'
      else {}
    )
    for setting, classifier in classifiers.items():
      done = repair.repaired(inputs, images, source, seen, setting, classifier)
      parts = done._asdict()
      if cell.name == 'clean':
        parts['kept'] = np.array(repair.kept(inputs, classifier))
      else:
        parts['valid'] = hits[setting]
      for name, part in parts.items():
        each.setdefault(f'{named(setting)}/{name}', []).append(part)
  return found | {name: np.stack(parts) for name, parts in each.items()}


def describe(inputs: RunInputs, found: dict[str, Any]) -> ReportParts:
  """Says which masking rates recover most."""
  alphas = sorted(float(alpha) for alpha in inputs.config.alphas)
  truth, source = inputs.clean['test'].labels, inputs.clean['test'].source
  groups = groups_of(inputs.config.attack_names)
  columns = [(mask_rule, alpha) for mask_rule in READINGS for alpha in alphas]
  lines = {title: (title, '–') for title in REFERENCES.values()}
  names = {title: name for name, title in REFERENCES.items()}
  for mask_rule, alpha in columns:
    lines[named((mask_rule, alpha))] = (mask_rule, f'{alpha:g}')
    names[named((mask_rule, alpha))] = f'{named((mask_rule, alpha))}/labels'
  accuracy = {
    (kind, line): share_estimate(arrays[names[line]] == truth, source)
    for kind, arrays in found.items()
    for line in lines
  }
  levels = {
    (goal, line): mean([accuracy[kind, line] for kind in kinds])
    for goal, kinds in groups.items()
    for line in lines
  }
  curves = {
    (mask_rule, goal): [
      levels[goal, named((mask_rule, alpha))] for alpha in alphas
    ]
    for mask_rule in READINGS
    for goal in groups
  }
  unmasked = {
    goal: levels[goal, REFERENCES[f'{named(UNMASKED)}/labels']]
    for goal in groups
  }
  n = len(truth)
  optimum = dict(
    zip(GOALS, PAPER_ALPHA.get(report.paper_dataset(inputs), ()), strict=False)
  )

  def keys(role: str, name: str, value: str, line: str) -> dict[str, Any]:
    reading, alpha = lines[line]
    return {'role': role, name: value, 'reading': reading, 'alpha': alpha}

  rows: list[Row] = []
  for line in lines:  # Networks differ in how much training moves them.
    rows += share_rows(
      [
        keys('kind', 'pictures', PAPER_NAME.get(kind, 'Clean'), line)
        for kind in found
      ],
      ACCURACY,
      [accuracy[kind, line] for kind in found],
      [n] * len(found),
    )
  rows += estimate_rows(
    [keys('mean', 'goal', goal, line) for goal, line in levels],
    ACCURACY,
    list(levels.values()),
    n,
  )
  # What is picked is picked on validation pictures.
  tried = {
    (mask_rule, goal): [
      float(np.mean([found[kind][f'{name}/valid'] for kind in groups[goal]]))
      for name in (named((mask_rule, alpha)) for alpha in alphas)
    ]
    for mask_rule, goal in curves
  }
  for (mask_rule, goal), shares in tried.items():
    rows.append(
      Row(
        {'role': 'best', 'reading': mask_rule, 'goal': goal},
        BEST,
        alphas[int(np.argmax(shares))],
        n=len(inputs.clean['valid'].labels),
        paper=optimum.get(goal),
      )
    )
  rows += fraction_rows(found, columns)
  kept = {
    setting: float(np.mean(found['clean'][f'{named(setting)}/kept']))
    for setting in (*columns, UNMASKED)
  }
  rows += kept_rows(inputs, kept)
  weak = detectors.too_weak(inputs, 'ensemble')
  return ReportParts(
    claims=claims(
      curves,
      tried,
      unmasked,
      alphas,
      n,
      weak + repair.forgets(min(kept.values())),
      optimum,
    ),
    rows=rows + report.picture_rows(inputs),
    answer=answer(curves, tried, unmasked, alphas),
    tables=tables(inputs, alphas),
    figures=[drawing(groups)],
    arrays=curve_arrays(accuracy, levels, lines, alphas),
    warnings=warnings(found, columns),
  )


def groups_of(attacks) -> dict[str, tuple[str, ...]]:
  """Groups the attacks of a run by their goal, those that have any."""
  by_goal = {
    'untargeted': tuple(a for a in attacks if not a.endswith('_t')),
    'targeted': tuple(a for a in attacks if a.endswith('_t')),
  }
  return {goal: kinds for goal, kinds in by_goal.items() if kinds}


def fraction_rows(found, columns) -> list[Row]:
  """Gives the realised fractions, on attacked and on clean pictures."""
  rows = []
  kinds = {
    'attacked': [kind for kind in found if kind != 'clean'],
    'clean': ['clean'],
  }
  for setting in columns:
    for pictures, own in kinds.items():
      for name, metric in (('suspect', SUSPECT), ('replaced', REPLACED)):
        # Over attacks and trainings first: versions of one picture are no
        # independent ones.
        shares = 100.0 * np.mean(
          [found[kind][f'{named(setting)}/{name}'] for kind in own],
          axis=(0, 1),
        )
        low, high = mean_interval(shares)
        rows.append(
          Row(
            {
              'role': 'fraction',
              'reading': setting[0],
              'alpha': f'{setting[1]:g}',
              'pictures': pictures,
            },
            metric,
            float(shares.mean()),
            low,
            high,
            n=len(shares),
          )
        )
  return rows


def kept_rows(inputs: RunInputs, kept) -> list[Row]:
  """Gives the clean validation pictures that each f_rec keeps."""
  return [
    Row(
      {'role': 'kept', 'reading': mask_rule, 'alpha': f'{alpha:g}'},
      repair.KEPT,
      share,
      n=len(inputs.clean['valid'].labels),
    )
    for (mask_rule, alpha), share in kept.items()
  ]


def inner_peak(curve, tried, alphas) -> list[Comparison]:
  """Compares the best rate inside the range with both ends of the range.

  Args:
    curve: Accuracy on test pictures at every rate.
    tried: Share of validation pictures recovered, which picks the rate.
    alphas: The rates, ascending.
  """
  if len(alphas) < 3:
    return []
  inner = 1 + int(np.argmax(tried[1:-1]))
  return [
    Comparison(
      f'alpha {alphas[inner]:g} minus {alphas[end]:g}',
      curve[inner] - curve[end],
    )
    for end in (0, -1)
  ]


def claims(curves, tried, unmasked, alphas, n, weak, optimum) -> list[Claim]:
  """Judges whether curves peak as Figure 6 does, and what masking adds.

  Args:
    curves: {(reading, goal): accuracy at every rate}.
    tried: {(reading, goal): share of validation pictures recovered at each}.
    unmasked: {goal: accuracy without masks}.
    alphas: The rates, ascending.
    n: Test pictures.
    weak: Why detectors and f_rec are too weak for any claim.
    optimum: {goal: rate of the paper's best accuracy}, if it has the data.
  """
  ask = functools.partial(judge, n=n, unfit=weak)
  judged = [
    ask(
      'Masking recovers more than fine-tuning on the same attacked pictures '
      f'without masks, with {MEANING[mask_rule]}',
      [
        Comparison(
          f'{goal}: mean over alpha minus not masked',
          mean(curves[mask_rule, goal]) - estimate,
        )
        for goal, estimate in unmasked.items()
      ],
    )
    for mask_rule in READINGS
  ]
  for (mask_rule, goal), curve in curves.items():
    claim = ask(
      f'Recovery from {goal} attacks is best inside the range of alpha, with '
      f'{MEANING[mask_rule]}',
      inner_peak(curve, tried[mask_rule, goal], alphas),
    )
    if goal in optimum:
      inside = alphas[0] < optimum[goal] < alphas[-1]
      paper = 'held' if inside else 'did not'
      claim = dataclasses.replace(claim, paper=paper)
    judged.append(claim)
  return judged


def answer(curves, tried, unmasked, alphas) -> str:
  """Answers the question in a sentence."""
  parts = []
  for (mask_rule, goal), curve in curves.items():
    best = int(np.argmax(tried[mask_rule, goal]))
    where = 'inside' if 0 < best < len(alphas) - 1 else 'at an end of'
    parts.append(
      f'{mask_rule}, {goal}: best at {alphas[best]:g} '
      f'({curve[best].value:.1f} %), {where} the range'
    )
  parts += [
    f'{goal}, fine-tuned but not masked: {estimate.value:.1f} %'
    for goal, estimate in unmasked.items()
  ]
  return '; '.join(parts) + '.'


def warnings(found, columns) -> list[str]:
  """Says where a reading masks almost nothing."""
  empty = []
  for setting in columns:
    shares = [
      found[kind][f'{named(setting)}/suspect']
      for kind in found
      if kind != 'clean'
    ]
    share = 100 * float(np.mean(np.concatenate(shares)))
    if share < 1:
      empty.append(f'{named(setting)} ({share:.2f} %)')
  if not empty:
    return []
  return [
    'Fewer than 1 % of the pixels are suspect at '
    + ', '.join(empty)
    + ': what is recovered there is owed to the fine-tuned classifier and to '
    'few pixels.'
  ]


def curve_arrays(accuracy, levels, lines, alphas):
  """Lays out the curves for `plots.curves`; intervals as in the table."""

  def bounded(estimates):
    ends = dict(
      zip(estimates, intervals(list(estimates.values())), strict=True)
    )
    return {
      place: [estimate.value, *ends[place]]
      for place, estimate in estimates.items()
    }

  clean = {line: accuracy['clean', line] for line in lines}
  points = bounded(levels) | {
    ('clean', line): point for line, point in bounded(clean).items()
  }

  def curve(goal, names):
    return np.array([alphas, *np.transpose([points[goal, n] for n in names])])

  goals = dict.fromkeys(goal for goal, _ in points)
  arrays = {
    f'{mask_rule}/{goal}': curve(
      goal, [named((mask_rule, alpha)) for alpha in alphas]
    )
    for mask_rule in READINGS
    for goal in goals
  }
  for title in REFERENCES.values():
    for goal in goals:
      arrays[f'{title}/{goal}'] = curve(goal, [title] * len(alphas))
  return arrays


def drawing(groups) -> Plot:
  """Lays out Figure 6 with both readings."""
  return Plot(
    'alpha',
    'curves',
    'Accuracy behind the rectifier alone (every picture is masked and goes to '
    'the fine-tuned classifier), for both readings of alpha (Figure 6 of the '
    'paper), mean over the attacks of a goal. Bands: 95 % intervals.',
    {
      'panels': {
        MEANING[mask_rule]: {'clean': f'{mask_rule}/clean'}
        | {goal: f'{mask_rule}/{goal}' for goal in groups}
        | {
          f'{goal}, {title}': f'{title}/{goal}'
          for title in REFERENCES.values()
          for goal in groups
        }
        for mask_rule in READINGS
      },
      'xlabel': 'alpha',
      'ylabel': 'accuracy (%)',
    },
  )


def tables(inputs: RunInputs, alphas) -> list[Table]:
  """Lays out the tables."""
  names = ('Clean', *report.columns(inputs, inputs.config.attack_names))
  rates = ('–', *(f'{alpha:g}' for alpha in alphas))
  return [
    Table(
      'Accuracy behind the rectifier alone, mean over attacks',
      ACCURACY,
      ('goal', 'reading'),
      'alpha',
      columns=rates,
      filters={'role': 'mean'},
      note='All attacked test pictures, rounded to 8 bit; true labels. Mean '
      f'over {inputs.config.num_seeds} trainings of detectors and f_rec.',
    ),
    Table(
      'Accuracy behind the rectifier alone',
      ACCURACY,
      ('reading', 'alpha'),
      'pictures',
      columns=names,
      filters={'role': 'kind'},
    ),
    Table(
      'Best alpha of those tried',
      BEST,
      ('reading',),
      'goal',
      columns=GOALS,
      filters={'role': 'best'},
      note='On validation pictures, mean over attacks and trainings.',
      decimals=2,
    ),
    Table(
      'Suspect pixels, realised',
      SUSPECT,
      ('reading', 'pictures'),
      'alpha',
      columns=rates,
      filters={'role': 'fraction'},
    ),
    Table(
      'Replaced pixels, realised',
      REPLACED,
      ('reading', 'pictures'),
      'alpha',
      columns=rates,
      filters={'role': 'fraction'},
      note='A suspect is replaced with probability 0.5 in every draw.',
    ),
    repair.kept_table(
      'the victim has all of them right. A fraction of 0: fine-tuned on '
      'pictures that are not masked.'
    ),
    *report.picture_tables(inputs),
  ]
