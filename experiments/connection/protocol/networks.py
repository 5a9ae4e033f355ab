"""The networks of a run: published or trained, and kept in the cache.

What a piece was made from is its address in the cache, so experiments and
reruns share pieces and a changed option never meets a stale one.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.connection.protocol.setting import Config, weight_file
from jaxadv import experiment, hosts
from jaxadv.classifier import Classifier, predict
from jaxadv.data import sources
from jaxadv.data.known import may_mirror
from jaxadv.models import BACKBONES
from jaxadv.models.names import parse_network
from jaxadv.models.pretrained import load_classifier
from jaxadv.models.weights import published
from jaxadv.storage import Cache, fingerprint
from jaxadv.training import TrainConfig
from jaxadv.training.classifiers import cached_classifier, usual_recipe
from jaxadv.training.mesh import all_devices as mesh


class Network(NamedTuple):
  """A network with its weights and how the cache names it.

  Attributes:
    name: Of the backbone.
    module: Linen module, a chain of stages.
    classifier: The module with weights and preprocessing.
    identity: Hash of all that made the weights.
    accuracy: Share of the held-out pictures that it classifies correctly; None
      if its classes are not those of the data set, or nobody asked.
    batch_norm: Whether its BatchNorm has statistics, and can train on.
  """

  name: str
  module: Any
  classifier: Classifier
  identity: str
  accuracy: float | None
  batch_norm: bool = True


def networks_of(config: Config) -> tuple[str, ...]:
  """Lists the networks of a run, without repeats."""
  return tuple(
    dict.fromkeys((config.victim, *config.reference, *config.backbones))
  )


def network_of(
  config: Config,
  cache: Cache,
  network: str,
  train: sources.Pictures,
  heldout: sources.Pictures,
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
    heldout: Pictures to measure the accuracy on.
    epochs: Number of epochs of a training.
    seed: As of `trained_network`.
    recipe: As of `trained_network`.
    measured: Whether to measure the accuracy of a published one.

  Returns:
    The network.
  """
  path = weight_file(config, network)
  if not path:
    return trained_network(
      config,
      cache,
      network,
      train,
      heldout,
      epochs,
      seed=seed,
      recipe=recipe,
    )
  name = parse_network(network)
  module, classifier = load_classifier(name, config.image_size, path)
  accuracy = None
  if measured and module.num_classes == len(heldout.class_names):
    published.check_classes(
      path, module.num_classes, heldout.class_names, config.dataset
    )
    accuracy = float(np.mean(correct(config, classifier, heldout)))
  # Statistics that are all zero were folded into the convolutions.
  means = [
    leaf
    for where, leaf in jax.tree.leaves_with_path(classifier.variables)
    if 'mean' in jax.tree_util.keystr(where)
  ]
  return Network(
    name.name,
    module,
    classifier,
    fingerprint([module, classifier.variables, classifier.preprocess]),
    accuracy,
    batch_norm=any(bool(leaf.any()) for leaf in means),
  )


def backbone(
  config: Config,
  cache: Cache,
  network: str,
  train: sources.Pictures,
  heldout: sources.Pictures,
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


def trained_network(
  config: Config,
  cache: Cache,
  network: str,
  train: sources.Pictures,
  heldout: sources.Pictures,
  epochs: int,
  *,
  seed: int | None = None,
  recipe: TrainConfig | None = None,
) -> Network:
  """Trains a network as a classifier of the data set.

  Args:
    config: The config of the run.
    cache: Keeps the weights.
    network: `name:width:size`.
    train: Pictures to train on.
    heldout: Pictures to measure the accuracy on; no choice depends on it.
    epochs: Number of epochs.
    seed: Which of several trainings; None of a network that has only one.
    recipe: Of the training; the usual one of so many epochs if None.

  Returns:
    The network.
  """
  name = parse_network(network)
  role = f'train {network}' + ('' if seed is None else f' seed {seed}')
  found = cached_classifier(
    stream(config, role),
    cache,
    name,
    train,
    heldout,
    epochs,
    image_size=config.image_size,
    flip=may_mirror(config.dataset),
    identity={'seed': config.seed},
    batch_size=config.batch_size,
    mesh=mesh(),
    recipe=recipe,
  )
  return Network(
    name.name, found.module, found.classifier, found.identity, found.accuracy
  )


def correct(
  config: Config, classifier: Classifier, pictures: sources.Pictures
) -> np.ndarray:
  """Tells which pictures a classifier gets right, bool[N]."""
  logits = predict(classifier, pictures.images, config.batch_size)
  # Decides which pictures are attacked: the same on every host.
  return hosts.agree(logits.argmax(-1) == pictures.labels)


def stream(config: Config, name: str) -> jax.Array:
  """Gives the random key of one part of the run, whatever the order."""
  return experiment.stream(config.seed, name)
