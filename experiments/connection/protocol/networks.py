"""The networks of a run: published or trained, and kept in the cache.

What a piece was made from is its address in the cache, so experiments and
reruns share pieces and a changed option never meets a stale one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.connection.protocol.setting import (
  Config,
  parse_network,
  weight_file,
)
from jaxadv import hosts, models
from jaxadv.classifier import (
  Classifier,
  Normalise,
  Resized,
  from_linen,
  predict,
)
from jaxadv.data import sources
from jaxadv.models.weights import native, published
from jaxadv.storage import Cache, fingerprint, read_json, write_json
from jaxadv.training import TrainConfig, data_mesh
from jaxadv.training.classifiers import fit_classifier

# Data sets whose mirrored pictures are no pictures of their class.
UPRIGHT = ('digits', 'mnist')


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
    measured: Whether to measure the accuracy of a published one.

  Returns:
    The network.
  """
  path = weight_file(config, network)
  if not path:
    return trained_network(config, cache, network, train, heldout, epochs)
  module, classifier = load_weights(config, network, path)
  accuracy = None
  if measured and module.num_classes == len(heldout.class_names):
    accuracy = float(np.mean(correct(config, classifier, heldout)))
  # Statistics that are all zero were folded into the convolutions.
  means = [
    leaf
    for where, leaf in jax.tree.leaves_with_path(classifier.variables)
    if 'mean' in jax.tree_util.keystr(where)
  ]
  return Network(
    parse_network(network).name,
    module,
    classifier,
    fingerprint([classifier.variables, classifier.preprocess]),
    accuracy,
    batch_norm=any(bool(leaf.any()) for leaf in means),
  )


def backbone(
  config: Config,
  cache: Cache,
  network: str,
  train: sources.Pictures,
  heldout: sources.Pictures,
) -> Network:
  """Gives the network of a detector, of which a part will be frozen."""
  count = config.backbone_pictures or len(train.labels)
  return network_of(
    config,
    cache,
    network,
    sources.subset(train, np.arange(len(train.labels))[:count]),
    heldout,
    config.backbone_epochs,
    measured=False,  # Nobody asks for it.
  )


def trained_network(
  config: Config,
  cache: Cache,
  network: str,
  train: sources.Pictures,
  heldout: sources.Pictures,
  epochs: int,
) -> Network:
  """Trains a network as a classifier of the data set.

  Args:
    config: The config of the run.
    cache: Keeps the weights.
    network: `name:width`.
    train: Pictures to train on.
    heldout: Pictures to measure the accuracy on; no choice depends on it.
    epochs: Number of epochs.

  Returns:
    The network.
  """
  name, width, _ = parse_network(network)
  size = parse_network(network).size_for(config.image_size)
  recipe = TrainConfig(
    num_epochs=epochs,
    # Small sets need more steps an epoch than batches of 128 would give.
    batch_size=128 if len(train.labels) > 5000 else 32,
    learning_rate=1e-3,
    schedule='cosine',
    weight_decay=1e-2,
  )
  flip = Path(config.dataset).name.partition(':')[0] not in UPRIGHT
  module = models.build(
    name,
    num_classes=len(train.class_names),
    width=width,
    image_size=size,
    **models.BACKBONES[name].from_scratch,
  )
  preprocess = resized(config, size, standardise(train.images))
  template = jax.eval_shape(
    lambda: models.init_variables(jax.random.key(0), module, size)
  )
  settings = {
    'module': module,
    'recipe': recipe,
    'flip': flip,
    'train': train.fingerprint,
    'heldout': heldout.fingerprint,
    'seed': config.seed,
    'size': size,
  }

  def make(folder, work):
    variables = fit_classifier(
      stream(config, f'train {network}'),
      module,
      train.images,
      train.labels,
      recipe,
      preprocess=preprocess,
      flip=flip,
      mesh=mesh(),
      checkpoint_dir=work,
    )
    native.write_variables(folder / 'variables.npz', variables)
    logits = predict(
      from_linen(module, variables, preprocess=preprocess),
      heldout.images,
      config.batch_size,
    )
    accuracy = float(np.mean(logits.argmax(-1) == heldout.labels))
    write_json(folder / 'accuracy.json', {'heldout': accuracy})

  folder = cache.get_or_make('classifier', 1, settings, make)
  variables = native.read_variables(folder / 'variables.npz', template)
  return Network(
    name,
    module,
    from_linen(module, variables, preprocess=preprocess),
    folder.name,
    read_json(folder / 'accuracy.json')['heldout'],
  )


def load_weights(
  config: Config, network: str, path: str
) -> tuple[Any, Classifier]:
  """Loads a network with published weights, and its preprocessing.

  Raises:
    DataError: If the file is broken.
    UserError: If names or shapes in the file do not fit.
  """
  name, width, _ = parse_network(network)
  size = parse_network(network).size_for(config.image_size)
  module = models.build(
    name,
    num_classes=published.num_classes(path),
    width=width,
    image_size=size,
  )
  template = jax.eval_shape(
    lambda: models.init_variables(jax.random.key(0), module, size)
  )
  variables = published.load(name, width, size, path, module, template)
  preprocess = resized(config, size, models.BACKBONES[name].preprocess)
  return module, from_linen(module, variables, preprocess=preprocess)


def resized(
  config: Config, size: int, preprocess: Callable[[jax.Array], jax.Array]
) -> Callable[[jax.Array], jax.Array]:
  """Puts resizing before a preprocessing, where a network needs it."""
  return preprocess if size == config.image_size else Resized(size, preprocess)


def standardise(images: np.ndarray) -> Normalise:
  """Gives the preprocessing that makes channels zero-mean with unit spread."""
  scaled = images.reshape(-1, images.shape[-1]) / 255
  round4 = lambda values: tuple(round(float(v), 4) for v in values)
  return Normalise(round4(scaled.mean(0)), round4(scaled.std(0)))


def correct(
  config: Config, classifier: Classifier, pictures: sources.Pictures
) -> np.ndarray:
  """Tells which pictures a classifier gets right, bool[N]."""
  logits = predict(classifier, pictures.images, config.batch_size)
  # Decides which pictures are attacked: the same on every host.
  return hosts.agree(logits.argmax(-1) == pictures.labels)


def mesh() -> jax.sharding.Mesh | None:
  """Gives the mesh of all devices, if there are several."""
  return data_mesh() if jax.device_count() > 1 else None


def stream(config: Config, name: str) -> jax.Array:
  """Gives the random key of one part of the run, whatever the order."""
  return jax.random.key(int(fingerprint([config.seed, name])[:8], 16))
