"""Figure 4: every detector on the kind it was trained on."""

from __future__ import annotations

from experiments.connection.config import Config, get_config
from experiments.connection.detectors import cells
from experiments.connection.plan import plan
from experiments.connection.unseen_transfer import run_transfer
from jaxadv.reports import Record

__all__ = ['cells', 'get_config', 'plan', 'run']


def run(config: Config, workdir: str) -> Record | None:
  """Runs the experiment and writes its report; see `run_transfer`."""
  return run_transfer(config, workdir, name='seen_detection', unseen=False)
