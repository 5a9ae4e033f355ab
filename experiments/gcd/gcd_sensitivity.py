"""Figures 2, 3 and 4: is input sensitivity larger on attacked pictures?"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from sklearn.linear_model import LogisticRegression

from experiments.common import detectors as common
from experiments.common.controls import clean_table
from experiments.common.runner import CellCode, ReportParts
from experiments.common.tables import AUC, estimate_row
from experiments.gcd import detectors, repair, report
from experiments.gcd.config import (
  MINIMAL,
  PAPER_NAME,
  Config,
  get_config,
)
from experiments.gcd.pictures import RunInputs
from experiments.gcd.plan import plan
from experiments.gcd.run import run_gcd
from jaxadv.classifier import from_function
from jaxadv.detectors.input_sensitivity import input_sensitivity
from jaxadv.metrics.estimates import auc_estimate, mean
from jaxadv.reports import Claim, Plot, Record, Row, Table
from jaxadv.reports.verdicts import Comparison, judge
from jaxadv.runs import Cell

__all__ = ['cells', 'get_config', 'plan', 'run']

QUESTION = (
  'Is the loss gradient larger on pictures that an L2 attack has changed than '
  'on clean ones, and not on those of an Linf attack?'
)
SCORES = {'log_s': 'log S', 'confidence': '1 - max probability'}
# What "separates" is taken to mean; the paper shows histograms.
SEPARATES = 90.0


def cells(config: Config) -> list[Cell]:
  """Lists the cells of a run: every score."""
  return [Cell(name, {'score': name}) for name in SCORES]


def run(config: Config, workdir: str) -> Record | None:
  """Runs the experiment and writes its report; see `run_gcd`."""
  return run_gcd(
    config,
    workdir,
    name='gcd_sensitivity',
    question=QUESTION,
    cells=cells(config),
    code=CellCode(run_cell),
    describe=describe,
  )


def run_cell(
  inputs: RunInputs, cell: Cell, report_progress
) -> dict[str, np.ndarray]:
  """Scores all test pictures.

  Returns:
    {'clean' | ATTACK: float32[N]}, and 'exact/ATTACK' of the pictures as the
    attack left them, before rounding.
  """
  report_progress(f'score {SCORES[cell.name]}', 0.0)
  found = detectors.trivial_scores(
    inputs, cell.name, ('clean', *inputs.config.attack_names)
  )
  return found | {
    f'exact/{attack}': common.score_pictures(
      detectors.TRIVIAL[cell.name],
      inputs.victim.classifier,
      (),
      repair.exact_images(inputs, attack),
    )
    for attack in inputs.config.attack_names
  }


def describe(inputs: RunInputs, found: dict[str, Any]) -> ReportParts:
  """Says what the scores show."""
  attacks = [
    a for a in inputs.config.attack_names if report.succeeded(inputs, a).any()
  ]
  areas = {
    (score, attack): report.attack_auc(
      inputs, attack, found[score]['clean'], found[score][attack]
    )
    for score in SCORES
    for attack in attacks
  }
  # Without success a minimal-norm attack leaves the clean picture.
  shown = {'clean': found['log_s']['clean']} | {
    attack: found['log_s'][attack][report.succeeded(inputs, attack)]
    for attack in attacks
  }
  rows = [
    estimate_row(
      {
        'role': 'sensitivity',
        'score': SCORES[score],
        'attack': PAPER_NAME[attack],
      },
      AUC,
      estimate,
      n=int(report.succeeded(inputs, attack).sum()),
    )
    for (score, attack), estimate in areas.items()
  ]
  rows += [
    estimate_row(
      {
        'role': 'exact',
        'score': SCORES[score],
        'attack': PAPER_NAME[attack],
      },
      AUC,
      report.attack_auc(
        inputs, attack, found[score]['clean'], found[score][f'exact/{attack}']
      ),
      n=int(report.succeeded(inputs, attack).sum()),
    )
    for score in SCORES
    for attack in attacks
  ]
  for attack in attacks:
    survives_rounding = inputs.attacked[attack]['test'].success
    if survives_rounding.any():
      scores = found['log_s']
      rows.append(
        estimate_row(
          {
            'role': 'survives_rounding',
            'score': SCORES['log_s'],
            'attack': PAPER_NAME[attack],
          },
          AUC,
          report.attack_auc(
            inputs, attack, scores['clean'], scores[attack], survives_rounding
          ),
          n=int(survives_rounding.sum()),
        )
      )
  rows += _control(inputs, found['log_s']['clean'])
  for kind, scores in shown.items():
    sizes = np.exp(scores.astype(np.float64))
    rows.append(
      Row(
        {'role': 'size', 'pictures': PAPER_NAME.get(kind, kind)},
        'median of S',
        float(np.median(sizes)),
        n=len(sizes),
      )
    )
  toy_rows, toy_arrays = toy()
  by_norm = {
    'L2': [a for a in attacks if a in MINIMAL],
    'Linf': [a for a in attacks if a not in MINIMAL],
  }
  arrays = toy_arrays | {
    f'log10_s/{kind}': scores / np.log(10) for kind, scores in shown.items()
  }
  return ReportParts(
    claims=claims(
      areas,
      by_norm,
      min((int(report.succeeded(inputs, a).sum()) for a in attacks), default=0),
    ),
    rows=rows + report.picture_rows(inputs) + toy_rows,
    answer=answer(areas, by_norm),
    tables=tables(inputs),
    figures=[
      Plot(
        f'histogram-{norm.lower()}',
        'score_histogram',
        f'Input sensitivity S of clean test pictures and of those that '
        f'{norm} attacks have changed with success, rounded to 8 bit (Figure '
        f'{3 if norm == "L2" else 4} of the paper).',
        {
          'scores': {
            PAPER_NAME.get(kind, kind): f'log10_s/{kind}'
            for kind in ('clean', *own)
          },
          'xlabel': 'log10 S',
        },
      )
      for norm, own in by_norm.items()
      if own
    ]
    + [
      Plot(
        'toy',
        'field',
        'Input sensitivity of a network of one layer on pairs of numbers '
        '(Figure 2 of the paper): it is largest on the boundary, whatever the '
        'class.',
        {
          'values': 'toy/s',
          'extent': 'toy/extent',
          'points': {'class 0': 'toy/class0', 'class 1': 'toy/class1'},
          'label': 'S',
        },
      )
    ],
    arrays=arrays,
  )


def claims(areas, by_norm, n: int) -> list[Claim]:
  """Judges what the paper says of input sensitivity.

  Args:
    areas: {(score, attack): AUC}.
    by_norm: {norm: attacks}.
    n: Successes of the attack that has the fewest.
  """
  ask = functools.partial(judge, n=n)
  area = lambda attack: areas['log_s', attack]
  return [
    ask(
      f'S alone tells L2 attacks from clean pictures (AUC above '
      f'{SEPARATES:.0f})',
      [
        Comparison(
          f'{PAPER_NAME[a]} minus {SEPARATES:.0f}', area(a) - SEPARATES
        )
        for a in by_norm['L2']
      ],
    ),
    ask(
      'S tells Linf attacks clearly worse than L2 attacks',
      [
        Comparison(
          f'mean of the L2 attacks minus {PAPER_NAME[a]}',
          mean([area(b) for b in by_norm['L2']]) - area(a),
        )
        for a in by_norm['Linf']
        if by_norm['L2']
      ],
    ),
    ask(
      'S says more than the confidence of the classifier (1 - max probability)',
      [
        Comparison(
          f'{PAPER_NAME[a]}: log S minus 1 - max probability',
          area(a) - areas['confidence', a],
        )
        for a in by_norm['L2']
      ],
    ),
  ]


def answer(areas, by_norm) -> str:
  """Answers the question in a sentence."""
  parts = [
    f'{np.mean([areas["log_s", a].value for a in own]):.1f} % on {norm} attacks'
    for norm, own in by_norm.items()
    if own
  ]
  return f'The mean AUC of S is {" and ".join(parts)}; 50 % is chance.'


def tables(inputs: RunInputs) -> list[Table]:
  """Lays out the tables."""
  names = report.columns(inputs, inputs.config.attack_names)
  return [
    Table(
      'AUC of scores without training',
      AUC,
      ('score',),
      'attack',
      columns=names,
      filters={'role': 'sensitivity'},
      note='Attacked pictures rounded to 8 bit, those that the attack changed '
      'with success before rounding.',
    ),
    Table(
      'AUC of the same on attacked pictures before rounding',
      AUC,
      ('score',),
      'attack',
      columns=names,
      filters={'role': 'exact'},
      note='As the attack left them; the clean ones have 8 bit.',
    ),
    Table(
      'AUC of S on pictures that still fool the victim after rounding',
      AUC,
      ('score',),
      'attack',
      columns=names,
      filters={'role': 'survives_rounding'},
      note='Rounding moves a picture off the boundary, most often back to its '
      'class.',
    ),
    Table(
      'Median of S',
      'median of S',
      ('role',),
      'pictures',
      columns=('clean', *names),
      filters={'role': 'size'},
      decimals=6,
    ),
    *report.picture_tables(inputs),
    clean_table(AUC, 'score'),
    Table(
      'Toy network: rank correlation of S with the distance to the boundary',
      'rank correlation',
      ('role',),
      'points',
      filters={'role': 'toy'},
      control=True,
      decimals=3,
    ),
  ]


def _control(inputs: RunInputs, clean: np.ndarray) -> list[Row]:
  """Compares every other clean picture with the rest: nothing to tell."""
  sources = inputs.clean['test'].source
  estimate = auc_estimate(clean[::2], clean[1::2], sources[::2], sources[1::2])
  keys = {
    'role': 'control',
    'score': SCORES['log_s'],
    'pictures': 'halves of the clean ones',
  }
  return [estimate_row(keys, AUC, estimate, n=len(clean) // 2)]


def toy() -> tuple[list[Row], dict[str, np.ndarray]]:
  """Draws Figure 2: two noisy parallel lines, a network of one layer.

  Returns:
    The rank correlation of S with the distance to the boundary, and the
    arrays of the figure.
  """
  rng = np.random.default_rng(0)
  classes = np.repeat([0, 1], 100)
  along = rng.uniform(-3, 3, 200)
  points = np.stack([along, along + np.where(classes, 1.0, -1.0)], axis=-1)
  points += rng.normal(0, 0.3, points.shape)
  fitted = LogisticRegression().fit(points, classes)
  weights, bias = fitted.coef_[0], fitted.intercept_[0]

  def logits(images):
    margin = images.reshape(len(images), 2) @ jnp.asarray(weights) + bias
    return jnp.stack([jnp.zeros_like(margin), margin], axis=-1)

  def sizes(pairs):
    images = jnp.asarray(pairs, jnp.float32).reshape(-1, 1, 2, 1)
    return np.asarray(
      jax.jit(lambda x: input_sensitivity(from_function(logits), x).norm)(
        images
      )
    )

  extent = (-5.5, 5.5)
  ticks = np.linspace(*extent, 111)
  grid = np.stack(np.meshgrid(ticks, ticks), axis=-1)
  distance = np.abs(points @ weights + bias) / np.linalg.norm(weights)
  correlation = stats.spearmanr(distance, sizes(points)).statistic
  row = Row(
    {'role': 'toy', 'points': 'noisy points of two lines'},
    'rank correlation',
    float(correlation),
    n=len(points),
  )
  return [row], {
    'toy/s': sizes(grid.reshape(-1, 2)).reshape(grid.shape[:2]),
    'toy/extent': np.asarray([*extent, *extent]),
    'toy/class0': points[classes == 0],
    'toy/class1': points[classes == 1],
  }
