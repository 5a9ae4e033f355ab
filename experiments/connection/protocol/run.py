"""A run from its config to its report, and its plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from experiments import conduct
from experiments.connection.protocol import claims, record, study
from experiments.connection.protocol.matrix import Matrix
from experiments.connection.protocol.setting import Config
from jaxadv import reports

QUESTION = (
  'Does a detector that was trained on one kind of adversarial picture detect '
  'the other kinds?'
)


def run(
  config: Config, workdir: str, *, name: str, unseen: bool
) -> reports.Record | None:
  """Runs an experiment on the matrix of kinds and writes its report.

  Args:
    config: The config.
    workdir: As of `conduct`.
    name: Of the experiment.
    unseen: Whether to report the whole matrix, or only its diagonal.

  Returns:
    As `conduct`.

  Raises:
    UserError: If what was asked for cannot be.
    DataError: If data are broken or the disk is full.
  """

  def describe(prepared, found):
    cells = {
      record.title(network, config.image_size): scores
      for network, scores in found.items()
    }
    printed = record.printed_cells(list(cells), config.attacks)
    matrix = Matrix(cells, config.attacks, printed)
    return conduct.Findings(
      claims=claims.evaluate(
        matrix,
        unseen=unseen,
        faded=record.faded_kinds(prepared),
        unfit=record.untrained(prepared, matrix),
        harsh=record.few_taught(config),
      ),
      rows=record.auc_rows(matrix, unseen=unseen)
      + record.picture_rows(prepared, matrix)
      + record.control_rows(prepared, matrix),
      answer=answer(matrix, unseen=unseen),
      tables=record.tables(prepared, matrix.kinds, unseen=unseen),
      figures=record.figures(prepared, matrix, unseen=unseen),
      arrays=record.arrays(prepared, matrix, cells),
    )

  return run_matrix(
    config,
    workdir,
    name=name,
    question=QUESTION,
    work=study.DETECTORS,
    describe=describe,
  )


def run_matrix(
  config: Config,
  workdir: str,
  *,
  name: str,
  question: str,
  work: conduct.CellWork,
  describe: Callable[[study.Study, dict[str, list[Any]]], conduct.Findings],
) -> reports.Record | None:
  """Runs an experiment whose cells are backbones and seeds.

  Args:
    config: The config.
    workdir: As of `conduct`.
    name: Of the experiment.
    question: That it asks.
    work: What is done in a cell.
    describe: `(study, {network: result of each seed}) -> findings`, of the
      networks that are complete.

  Returns:
    As `conduct`.

  Raises:
    UserError: If what was asked for cannot be.
    DataError: If data are broken or the disk is full.
  """
  cells = study.cells(config)

  def gather(prepared, found):
    seeds: dict[str, list[Any]] = {}
    for cell in cells:
      if cell.name in found:
        seeds.setdefault(cell.settings['network'], []).append(found[cell.name])
    complete = {
      network: results
      for network, results in seeds.items()
      if len(results) == config.num_seeds
    }
    return describe(prepared, complete) if complete else None

  return conduct.conduct(
    config,
    workdir,
    conduct.Experiment(
      name=name,
      question=question,
      cells=cells,
      prepare=lambda note: study.prepare(config, workdir, note),
      work=work,
      describe=gather,
      seeds=[config.seed, config.num_seeds],
      fingerprints=lambda prepared: {
        'training pictures': prepared.train.fingerprint,
        'held-out pictures': prepared.heldout.fingerprint,
        'victim': prepared.collection.victim.identity,
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
    f'{record.PAPER_NAME[pair[0]]} to {record.PAPER_NAME[pair[1]]} '
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
