"""A run from its config to its report, and its plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.connection.protocol import claims, record, study
from experiments.connection.protocol.matrix import Matrix
from experiments.connection.protocol.setting import Config
from jaxadv import experiment, reports, storage
from jaxadv.errors import UserError
from jaxadv.reports import tables

# What comes before the cells, in units of a cell, for the progress bar.
PREPARING = 3
NUM_PIECES = 12
QUESTION = (
  'Does a detector that was trained on one kind of adversarial picture detect '
  'the other kinds?'
)


class Findings(NamedTuple):
  """What the results of the cells say, for the record and its report.

  Attributes:
    claims: The paper's claims with verdicts.
    rows: The measured figures.
    answer: The answer to the question, in a sentence.
    tables: Layout of the tables.
    figures: Layout of the figures.
    arrays: Scores and pictures behind the figures.
  """

  claims: Sequence[reports.Claim]
  rows: Sequence[reports.Row]
  answer: str
  tables: Sequence[reports.Table]
  figures: Sequence[reports.Figure]
  arrays: Mapping[str, np.ndarray]


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
    matrix = Matrix(cells, config.attacks)
    return Findings(
      claims=claims.evaluate(matrix, unseen=unseen),
      rows=record.auc_rows(matrix, unseen=unseen)
      + record.picture_rows(prepared)
      + record.control_rows(prepared, matrix),
      answer=answer(matrix, unseen=unseen),
      tables=record.tables(prepared, matrix.kinds, unseen=unseen),
      figures=record.figures(prepared, matrix, unseen=unseen),
      arrays=record.arrays(prepared, matrix, cells),
    )

  return conduct(
    config,
    workdir,
    name=name,
    question=QUESTION,
    work=study.DETECTORS,
    describe=describe,
  )


def conduct(
  config: Config,
  workdir: str,
  *,
  name: str,
  question: str,
  work: study.CellWork,
  describe: Callable[[study.Study, dict[str, list[Any]]], Findings],
) -> reports.Record | None:
  """Runs the cells of an experiment and writes its report.

  Args:
    config: The config.
    workdir: Folder of the results; a run of the same config is resumed.
    name: Of the experiment.
    question: That it asks.
    work: What is done in a cell.
    describe: `(study, {network: result of each seed}) -> findings`.

  Returns:
    The record, as written to results.json; None if other shards have to
    finish first.

  Raises:
    UserError: If what was asked for cannot be.
    DataError: If data are broken or the disk is full.
  """
  started = time.monotonic()
  folder = storage.open_workdir(
    workdir, {'experiment': name} | experiment.result_config(config)
  )
  num_cells = len(experiment.shard_of(study.cells(config), config.shard))
  with experiment.Progress(PREPARING + num_cells) as progress:

    def note_piece(text: str) -> None:
      progress.note(text)
      progress.advance(PREPARING / NUM_PIECES)

    try:
      prepared = study.prepare(config, workdir, note_piece)
    except UserError:
      if not (folder / 'cells').exists():
        # Nothing is in it yet: free for the corrected command.
        (folder / 'config.json').unlink(missing_ok=True)
      raise
    found, missing = study.finished_cells(prepared, workdir, progress, work)
    progress.note('report')
  if not found:
    print(f'this shard is done; still to do: {", ".join(missing)}')
    return None
  findings = describe(prepared, found)
  result = reports.Record(
    experiment=name,
    variant=config.variant,
    config=experiment.result_config(config),
    provenance=reports.provenance(
      seeds=[config.seed, config.num_seeds],
      seconds=time.monotonic() - started,
      fingerprints={
        'training pictures': prepared.train.fingerprint,
        'held-out pictures': prepared.heldout.fingerprint,
        'victim': prepared.collection.victim.identity,
      },
    ),
    claims=tuple(findings.claims),
    rows=tuple(findings.rows),
    missing=tuple(f'cell {cell}: run its shard' for cell in missing),
    question=question,
    answer=findings.answer,
    tables=tuple(findings.tables),
    figures=tuple(findings.figures),
  )
  reports.write_report(result, findings.arrays, folder)
  tables.print_table(result)
  print(f'\nreport: {folder / "report.html"}')
  return result


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
