"""A run of any experiment of the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from experiments.common.runner import (
  CellCode,
  Experiment,
  ReportParts,
  run_experiment,
)
from experiments.gcd import report
from experiments.gcd.config import Config
from experiments.gcd.pictures import RunInputs, fingerprints, prepare_inputs
from jaxadv.reports import Record
from jaxadv.runs import Cell


def run_gcd(
  config: Config,
  workdir: str,
  *,
  name: str,
  question: str,
  cells: Sequence[Cell],
  code: CellCode,
  describe: Callable[[RunInputs, dict[str, Any]], ReportParts],
) -> Record | None:
  """Runs an experiment and writes its report.

  Args:
    config: The config.
    workdir: Folder of the results; a run of the same config is resumed.
    name: Of the experiment.
    question: That it asks.
    cells: All of its cells.
    code: What is done in a cell.
    describe: `(inputs, {cell: result}) -> parts of the report`, of all cells.

  Returns:
    The record, as written to results.json; None if other shards have to
    finish first.

  Raises:
    UserError: If what was asked for cannot be.
    DataError: If data are broken or the disk is full.
  """

  def describe_all(inputs: RunInputs, results: dict[str, Any]):
    if len(results) < len(cells):
      return None
    parts = describe(inputs, results)
    doubts = report.doubts(inputs)
    return parts._replace(warnings=[*parts.warnings, *doubts])

  return run_experiment(
    config,
    workdir,
    Experiment(
      name=name,
      question=question,
      cells=cells,
      prepare_inputs=lambda report_progress: prepare_inputs(
        config, workdir, report_progress
      ),
      code=code,
      describe=describe_all,
      seeds=config.seed,
      fingerprints=fingerprints,
    ),
  )
