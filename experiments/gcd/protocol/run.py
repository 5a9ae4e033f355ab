"""A run of any experiment of the paper, and what it would do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from experiments import conduct
from experiments.gcd.protocol import record
from experiments.gcd.protocol import study as studies
from experiments.gcd.protocol.setting import Config
from experiments.gcd.protocol.study import Study
from jaxadv import reports
from jaxadv.experiment import Cell


def run(
  config: Config,
  workdir: str,
  *,
  name: str,
  question: str,
  cells: Sequence[Cell],
  work: conduct.CellWork,
  describe: Callable[[Study, dict[str, Any]], conduct.Findings],
) -> reports.Record | None:
  """Runs an experiment and writes its report.

  Args:
    config: The config.
    workdir: Folder of the results; a run of the same config is resumed.
    name: Of the experiment.
    question: That it asks.
    cells: All of its cells.
    work: What is done in a cell.
    describe: `(study, {cell: result}) -> findings`, of all cells.

  Returns:
    The record, as written to results.json; None if other shards have to
    finish first.

  Raises:
    UserError: If what was asked for cannot be.
    DataError: If data are broken or the disk is full.
  """

  def of_all(prepared, found):
    if len(found) < len(cells):
      return None
    findings = describe(prepared, found)
    doubts = record.doubts(prepared)
    return findings._replace(warnings=[*findings.warnings, *doubts])

  return conduct.conduct(
    config,
    workdir,
    conduct.Experiment(
      name=name,
      question=question,
      cells=cells,
      prepare=lambda note: studies.prepare(config, workdir, note),
      work=work,
      describe=of_all,
      seeds=config.seed,
      fingerprints=studies.fingerprints,
    ),
  )
