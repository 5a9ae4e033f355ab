"""Figures 5 and 6: one network that names the kinds of a category."""

from __future__ import annotations

import dataclasses

from experiments.connection.protocol import setting, supervision
from experiments.connection.protocol.setting import Config
from experiments.connection.protocol.supervision import cells, plan
from jaxadv.reports import Record

__all__ = ['cells', 'get_config', 'plan', 'run']


def get_config(variant: str = 'quick', dataset: str = '') -> Config:
  """Gives the config of a variant, with its first backbone alone.

  The paper does not say whose accuracy its Figure 6 shows.

  Raises:
    UserError: If there is no such variant.
  """
  config = setting.get_config(variant, dataset)
  return dataclasses.replace(config, backbones=config.backbones[:1])


def run(config: Config, workdir: str) -> Record | None:
  """Runs the experiment and writes its report; see `protocol.supervision`."""
  return supervision.run(config, workdir, name='attack_supervision')
