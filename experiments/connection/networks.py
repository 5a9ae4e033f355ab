"""The networks of the paper: victim, references and detector backbones."""

from __future__ import annotations

import dataclasses

import numpy as np

from experiments.common.networks import (
  Network,
  published_network,
  trained_network,
)
from experiments.connection.config import Config, weight_file
from jaxadv.data import sources
from jaxadv.data.sources import Pictures
from jaxadv.models import BACKBONES
from jaxadv.models.names import parse_network
from jaxadv.runs import stream
from jaxadv.storage import Cache
from jaxadv.training import TrainConfig
from jaxadv.training.classifiers import usual_recipe


def networks_of(config: Config) -> tuple[str, ...]:
  """Lists the networks of a run, without repeats."""
  return tuple(
    dict.fromkeys((config.victim, *config.reference, *config.backbones))
  )


def network_of(
  config: Config,
  cache: Cache,
  network: str,
  train: Pictures,
  heldout: Pictures,
  epochs: int,
  *,
  seed: int | None = None,
  recipe: TrainConfig | None = None,
  measured: bool = True,
) -> Network:
  """Gives a network: published if `--weights` says so, else trained.

  Args:
    config: The config of the run.
    cache: Keeps trained weights.
    network: `name:width:size`.
    train: Pictures to train on.
    heldout: Pictures to measure the accuracy on; no choice depends on it.
    epochs: Number of epochs of a training.
    seed: Which of several trainings; None of a network that has only one.
    recipe: Of the training; the usual one of so many epochs if None.
    measured: Whether to measure the accuracy of a published one.
  """
  if path := weight_file(config, network):
    return published_network(
      network,
      path,
      heldout,
      image_size=config.image_size,
      dataset=config.dataset,
      batch_size=config.batch_size * measured,
      must_fit=False,
    )
  role = f'train {network}' + ('' if seed is None else f' seed {seed}')
  return trained_network(
    stream(config.seed, role),
    cache,
    network,
    train,
    heldout,
    epochs,
    config=config,
    recipe=recipe,
  )


def backbone(
  config: Config,
  cache: Cache,
  network: str,
  train: Pictures,
  heldout: Pictures,
  seed: int,
) -> Network:
  """Gives the network of detectors, of which a part will be frozen.

  Each seed has a training of its own, unless the weights are published.
  """
  count = config.backbone_pictures or len(train.labels)
  known = BACKBONES[parse_network(network).name]
  recipe = dataclasses.replace(
    usual_recipe(config.backbone_epochs, count),
    batch_size=config.backbone_batch or known.batch_size,
    learning_rate=known.learning_rate,
  )
  return network_of(
    config,
    cache,
    network,
    sources.subset(train, np.arange(len(train.labels))[:count]),
    heldout,
    config.backbone_epochs,
    seed=seed,
    recipe=recipe,
    measured=False,  # Nobody asks for it.
  )
