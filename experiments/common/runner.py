"""A run from its config to its report: cells, shards, resume, record.

What an experiment adds is how to prepare its inputs, what to do in a cell, and
what its results say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common.options import Options, result_config
from jaxadv import reports, storage
from jaxadv.reports import tables
from jaxadv.runs import (
  Cell,
  Progress,
  freed_if_refused,
  run_cells,
  shard_of,
)

# What comes before the cells, in units of a cell, for the progress bar.
PREPARING = 3
NUM_PIECES = 12
# What says in the file of a cell which code it was made by.
_CODE = 'code_version'

# Tells in a few words what is being done, and the share of it that is.
ReportProgress = Callable[..., None]


class ReportParts(NamedTuple):
  """What the results of the cells say, for the record and its report.

  Attributes:
    claims: The paper's claims with verdicts.
    rows: What was measured.
    answer: The answer to the question, in a sentence.
    tables: Layout of the tables.
    figures: Layout of the figures.
    arrays: Scores and pictures behind the figures.
    warnings: Signs that the numbers mislead, a sentence each.
  """

  claims: Sequence[reports.Claim]
  rows: Sequence[reports.Row]
  answer: str
  tables: Sequence[reports.Table]
  figures: Sequence[reports.Plot]
  arrays: Mapping[str, np.ndarray]
  warnings: Sequence[str] = ()


class CellCode(NamedTuple):
  """What is done in a cell, and how its result lies in a file.

  Attributes:
    run: `(inputs, cell, report_progress) -> result`; `report_progress` is
      called with a few words and the share done. A rerun calls it again for
      the cells of its shard, so what takes long is kept in the cache.
    pack: `result -> {name: array}`.
    unpack: The way back.
  """

  run: Callable[..., Any]
  pack: Callable[..., dict[str, np.ndarray]] = dict
  unpack: Callable[..., Any] = dict


class Experiment(NamedTuple):
  """What `run_experiment` needs to know of an experiment.

  Attributes:
    name: Its name.
    question: That it asks.
    cells: All cells of the run.
    prepare_inputs: `(report_progress) -> inputs`, makes or finds what the
      cells share; called with a few words before each piece of work.
    code: What is done in a cell.
    describe: `(inputs, {cell: result}) -> parts of the report`, of the
      finished cells; None if they do not suffice.
    seeds: For the provenance.
    fingerprints: `inputs -> {name: hash of data or weights}`.
  """

  name: str
  question: str
  cells: Sequence[Cell]
  prepare_inputs: Callable[[ReportProgress], Any]
  code: CellCode
  describe: Callable[[Any, dict[str, Any]], ReportParts | None]
  seeds: Any
  fingerprints: Callable[[Any], Mapping[str, str]]


def run_experiment(
  config: Options, workdir: str, experiment: Experiment
) -> reports.Record | None:
  """Runs the cells of an experiment and writes its report.

  Args:
    config: The config.
    workdir: Folder of the results; a run of the same config is resumed. Each
      cell leaves cells/NAME.npz in it.
    experiment: The experiment.

  Returns:
    The record, as written to results.json; None if other shards have to
    finish first.

  Raises:
    UserError: If what was asked for cannot be.
    DataError: If data are broken or the disk is full.
  """
  started = time.monotonic()
  cells, code = experiment.cells, experiment.code
  about = {'experiment': experiment.name} | result_config(config)
  folder = storage.open_workdir(workdir, about)
  # Cells of another shard count if they were made by the same code.
  version = storage.code_version(code.run.__module__)
  num_cells = len(shard_of(cells, config.shard))
  with Progress(PREPARING + num_cells) as progress:

    def note_piece(text: str) -> None:
      progress.note(text)
      progress.advance(PREPARING / NUM_PIECES)

    with freed_if_refused(folder):
      inputs = experiment.prepare_inputs(note_piece)

    def run(cell: Cell) -> Any:
      result = code.run(inputs, cell, progress.note)
      path = folder / 'cells' / f'{cell.name}.npz'
      storage.write_npz(path, **code.pack(result), **{_CODE: version})
      return result

    def read(cell: Cell) -> Any:
      path = folder / 'cells' / f'{cell.name}.npz'
      arrays = storage.read_npz(path) if path.exists() else {}
      return code.unpack(arrays) if arrays.pop(_CODE, None) == version else None

    results, missing = run_cells(cells, config.shard, run, read, progress)
    progress.note('report')
  parts = experiment.describe(inputs, results)
  if parts is None:
    print(f'this shard is done; still to do: {", ".join(missing)}')
    return None
  record = reports.Record(
    experiment=experiment.name,
    variant=config.variant,
    config=result_config(config),
    provenance=reports.provenance(
      seeds=experiment.seeds,
      seconds=time.monotonic() - started,
      fingerprints=experiment.fingerprints(inputs),
    ),
    claims=tuple(parts.claims),
    rows=tuple(parts.rows),
    missing=tuple(f'cell {cell}: run its shard' for cell in missing),
    question=experiment.question,
    answer=parts.answer,
    tables=tuple(parts.tables),
    figures=tuple(parts.figures),
    warnings=tuple(parts.warnings),
  )
  reports.write_report(record, parts.arrays, folder)
  tables.print_table(record)
  print(f'\nreport: {folder / "report.html"}')
  return record
