"""Table 1: every detector on every kind, seen and unseen."""

from __future__ import annotations

from collections.abc import Iterable

from experiments.connection.protocol import plan as planning
from experiments.connection.protocol import run as running
from experiments.connection.protocol import study
from experiments.connection.protocol.setting import Config, get_config
from jaxadv.experiment import Cell
from jaxadv.reports import Record

__all__ = ['cells', 'get_config', 'plan', 'run']


def cells(config: Config) -> Iterable[Cell]:
  """Lists the cells: a backbone and a seed each, with all its detectors."""
  return study.cells(config)


def plan(config: Config, workdir: str) -> str:
  """Says what a run would do; runs nothing."""
  return planning.plan(config, workdir)


def run(config: Config, workdir: str) -> Record | None:
  """Runs the experiment and writes its report; see `protocol.run`."""
  return running.run(config, workdir, name='unseen_transfer', unseen=True)
