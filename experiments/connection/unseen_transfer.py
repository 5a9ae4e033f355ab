"""Table 1: every detector on every kind, seen and unseen."""

from __future__ import annotations

from experiments.connection.protocol import run as protocol
from experiments.connection.protocol.plan import plan
from experiments.connection.protocol.setting import Config, get_config
from experiments.connection.protocol.study import cells
from jaxadv.reports import Record

__all__ = ['cells', 'get_config', 'plan', 'run']


def run(config: Config, workdir: str) -> Record | None:
  """Runs the experiment and writes its report; see `protocol.run`."""
  return protocol.run(config, workdir, name='unseen_transfer', unseen=True)
