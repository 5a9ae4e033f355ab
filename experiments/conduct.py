"""A run from its config to its report: cells, shards, resume, record.

What an experiment adds is how to prepare, what to do in a cell, and what its
results say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxadv import experiment, reports, storage
from jaxadv.errors import UserError
from jaxadv.experiment import Cell, Options, Progress
from jaxadv.reports import tables

# What comes before the cells, in units of a cell, for the progress bar.
PREPARING = 3
NUM_PIECES = 12
# What says in the file of a cell which code it was made by.
_CODE = 'code_version'


class Findings(NamedTuple):
  """What the results of the cells say, for the record and its report.

  Attributes:
    claims: The paper's claims with verdicts.
    rows: The measured figures.
    answer: The answer to the question, in a sentence.
    tables: Layout of the tables.
    figures: Layout of the figures.
    arrays: Scores and pictures behind the figures.
    warnings: Signs that the figures mislead, a sentence each.
  """

  claims: Sequence[reports.Claim]
  rows: Sequence[reports.Row]
  answer: str
  tables: Sequence[reports.Table]
  figures: Sequence[reports.Plot]
  arrays: Mapping[str, np.ndarray]
  warnings: Sequence[str] = ()


class CellWork(NamedTuple):
  """What is done in a cell, and how its result lies in a file.

  Attributes:
    run: `(study, cell, note) -> result`; `note` is called with a few words and
      the share done.
    pack: `result -> {name: array}`.
    unpack: The way back.
  """

  run: Callable[..., Any]
  pack: Callable[..., dict[str, np.ndarray]] = dict
  unpack: Callable[..., Any] = dict


class Experiment(NamedTuple):
  """What `conduct` needs to know of an experiment.

  Attributes:
    name: Its name.
    question: That it asks.
    cells: All cells of the run.
    prepare: `(note) -> study`, makes or finds what the cells share; `note` is
      called with a few words before each piece of work.
    work: What is done in a cell.
    describe: `(study, {cell: result}) -> findings`, of the finished cells;
      None if they do not suffice.
    seeds: For the provenance.
    fingerprints: `study -> {name: hash of data or weights}`.
  """

  name: str
  question: str
  cells: Sequence[Cell]
  prepare: Callable[[Callable[[str], None]], Any]
  work: CellWork
  describe: Callable[[Any, dict[str, Any]], Findings | None]
  seeds: Any
  fingerprints: Callable[[Any], Mapping[str, str]]


def conduct(
  config: Options, workdir: str, what: Experiment
) -> reports.Record | None:
  """Runs the cells of an experiment and writes its report.

  Args:
    config: The config.
    workdir: Folder of the results; a run of the same config is resumed.
    what: The experiment.

  Returns:
    The record, as written to results.json; None if other shards have to
    finish first.

  Raises:
    UserError: If what was asked for cannot be.
    DataError: If data are broken or the disk is full.
  """
  started = time.monotonic()
  folder = storage.open_workdir(
    workdir, {'experiment': what.name} | experiment.result_config(config)
  )
  num_cells = len(experiment.shard_of(what.cells, config.shard))
  with Progress(PREPARING + num_cells) as progress:

    def note_piece(text: str) -> None:
      progress.note(text)
      progress.advance(PREPARING / NUM_PIECES)

    try:
      study = what.prepare(note_piece)
    except UserError:
      if not (folder / 'cells').exists():
        # Nothing is in it yet: free for the corrected command.
        (folder / 'config.json').unlink(missing_ok=True)
      raise
    found, missing = _finished_cells(config, what, study, folder, progress)
    progress.note('report')
  findings = what.describe(study, found)
  if findings is None:
    print(f'this shard is done; still to do: {", ".join(missing)}')
    return None
  result = reports.Record(
    experiment=what.name,
    variant=config.variant,
    config=experiment.result_config(config),
    provenance=reports.provenance(
      seeds=what.seeds,
      seconds=time.monotonic() - started,
      fingerprints=what.fingerprints(study),
    ),
    claims=tuple(findings.claims),
    rows=tuple(findings.rows),
    missing=tuple(f'cell {cell}: run its shard' for cell in missing),
    question=what.question,
    answer=findings.answer,
    tables=tuple(findings.tables),
    figures=tuple(findings.figures),
    warnings=tuple(findings.warnings),
  )
  reports.write_report(result, findings.arrays, folder)
  tables.print_table(result)
  print(f'\nreport: {folder / "report.html"}')
  return result


def _finished_cells(
  config: Options,
  what: Experiment,
  study: Any,
  folder: Path,
  progress: Progress,
) -> tuple[dict[str, Any], list[str]]:
  """Runs the cells of this shard and gathers those of all shards.

  Each cell leaves cells/NAME.npz in the folder.

  Returns:
    {cell: result}, and the names of the cells that other shards still have to
    do, or did with other code.
  """
  mine = {c.name for c in experiment.shard_of(what.cells, config.shard)}
  # Cells of another shard count if they were made by the same code.
  version = storage.code_version(what.work.run.__module__)
  found: dict[str, Any] = {}
  missing = []
  for cell in what.cells:
    path = folder / 'cells' / f'{cell.name}.npz'
    if cell.name in mine:
      found[cell.name] = what.work.run(study, cell, progress.note)
      arrays = what.work.pack(found[cell.name])
      storage.write_npz(path, **arrays, **{_CODE: version})
      progress.advance()
      continue
    arrays = storage.read_npz(path) if path.exists() else {}
    if arrays.pop(_CODE, None) == version:
      found[cell.name] = what.work.unpack(arrays)
    else:
      missing.append(cell.name)
  return found, missing
