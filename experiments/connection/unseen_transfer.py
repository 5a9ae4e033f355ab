"""Table 1: every detector on every kind, seen and unseen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from experiments.common.runner import (
  CellCode,
  Experiment,
  ReportParts,
  run_experiment,
)
from experiments.connection import claims, detectors, report
from experiments.connection.config import Config, get_config
from experiments.connection.detectors import RunInputs, cells
from experiments.connection.matrix import Matrix
from experiments.connection.plan import plan
from jaxadv import reports

__all__ = ['cells', 'get_config', 'plan', 'run']

QUESTION = (
  'Does a detector that was trained on one kind of adversarial picture detect '
  'the other kinds?'
)


def run(config: Config, workdir: str) -> reports.Record | None:
  """Runs the experiment and writes its report; see `run_matrix`."""
  return run_transfer(config, workdir, name='unseen_transfer', unseen=True)


def run_transfer(
  config: Config, workdir: str, *, name: str, unseen: bool
) -> reports.Record | None:
  """Runs an experiment on the matrix of kinds and writes its report.

  Args:
    config: The config.
    workdir: As of `run_experiment`.
    name: Of the experiment.
    unseen: Whether to report the whole matrix, or only its diagonal.

  Returns:
    As `run_experiment`.

  Raises:
    UserError: If what was asked for cannot be.
    DataError: If data are broken or the disk is full.
  """

  def describe(inputs, found):
    scores = {
      report.title(network, config.image_size): seeds
      for network, seeds in found.items()
    }
    printed = report.printed_cells(list(scores), config.attacks)
    matrix = Matrix(scores, config.attacks, printed)
    return ReportParts(
      claims=claims.evaluate(
        matrix,
        unseen=unseen,
        faded=report.faded_kinds(inputs),
        unfit=report.untrained(inputs, matrix),
        harsh=report.trained_on_few(config),
      ),
      rows=report.auc_rows(matrix, unseen=unseen)
      + report.picture_rows(inputs, matrix)
      + report.control_rows(inputs, matrix),
      answer=answer(matrix, unseen=unseen),
      tables=report.tables(inputs, matrix.kinds, unseen=unseen),
      figures=report.figures(inputs, matrix, unseen=unseen),
      arrays=report.arrays(inputs, matrix, scores),
    )

  return run_matrix(
    config,
    workdir,
    name=name,
    question=QUESTION,
    code=detectors.DETECTORS,
    describe=describe,
  )


def run_matrix(
  config: Config,
  workdir: str,
  *,
  name: str,
  question: str,
  code: CellCode,
  describe: Callable[[RunInputs, dict[str, list[Any]]], ReportParts],
) -> reports.Record | None:
  """Runs an experiment whose cells are backbones and seeds.

  Args:
    config: The config.
    workdir: As of `run_experiment`.
    name: Of the experiment.
    question: That it asks.
    code: What is done in a cell.
    describe: `(inputs, {network: result of each seed}) -> parts`, of the
      networks that are complete.

  Returns:
    As `run_experiment`.

  Raises:
    UserError: If what was asked for cannot be.
    DataError: If data are broken or the disk is full.
  """
  all_cells = cells(config)

  def gather(inputs, found):
    seeds: dict[str, list[Any]] = {}
    for cell in all_cells:
      if cell.name in found:
        seeds.setdefault(cell.settings['network'], []).append(found[cell.name])
    complete = {
      network: results
      for network, results in seeds.items()
      if len(results) == config.num_seeds
    }
    return describe(inputs, complete) if complete else None

  return run_experiment(
    config,
    workdir,
    Experiment(
      name=name,
      question=question,
      cells=all_cells,
      prepare_inputs=lambda report_progress: detectors.prepare_inputs(
        config, workdir, report_progress
      ),
      code=code,
      describe=gather,
      seeds=[config.seed, config.num_seeds],
      fingerprints=lambda inputs: {
        'training pictures': inputs.train.fingerprint,
        'held-out pictures': inputs.heldout.fingerprint,
        'victim': inputs.collection.victim.fingerprint,
      },
    ),
  )


def answer(matrix: Matrix, *, unseen: bool) -> str:
  """Answers the question in a sentence, with means over the backbones."""
  seen = mean_auc(matrix, [(k, k) for k in matrix.kinds])
  text = (
    f'Detectors reach a mean AUC of {seen:.1f} % on the kind they were trained '
    'on'
  )
  others = [(a, b) for a in matrix.kinds for b in matrix.kinds if a != b]
  if not unseen or not others:
    return text + '.'
  best = max(others, key=lambda pair: mean_auc(matrix, [pair]))
  worst = min(others, key=lambda pair: mean_auc(matrix, [pair]))
  describe = lambda pair: (
    f'{report.PAPER_NAME[pair[0]]} to {report.PAPER_NAME[pair[1]]} '
    f'({mean_auc(matrix, [pair]):.1f} %)'
  )
  return (
    f'{text} and of {mean_auc(matrix, others):.1f} % on the other kinds, from '
    f'{describe(worst)} to {describe(best)}; 50 % is chance.'
  )


def mean_auc(matrix: Matrix, pairs: Sequence[tuple[str, str]]) -> float:
  """Averages cells over backbones and (trained on, tested on) pairs."""
  values = [
    matrix.cell(backbone, *pair).value
    for backbone in matrix.backbones
    for pair in pairs
  ]
  return sum(values) / len(values)
