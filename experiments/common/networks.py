"""The networks of a run: published or trained, and kept in the cache.

What a piece was made from is its address in the cache, so experiments and
reruns share pieces and a changed option never meets a stale one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxadv import hosts
from jaxadv.classifier import Classifier, Normalise, predict
from jaxadv.data import imagenet
from jaxadv.data.known import may_mirror
from jaxadv.data.sources import Pictures
from jaxadv.models.names import parse_network
from jaxadv.models.pretrained import load_classifier, restricted
from jaxadv.models.weights import published
from jaxadv.storage import Cache, fingerprint
from jaxadv.training import TrainConfig, mesh
from jaxadv.training.classifiers import cached_classifier


class Network(NamedTuple):
  """A network with its weights and how the cache names it.

  Attributes:
    name: Of the backbone.
    module: Linen module, a chain of stages.
    classifier: The module with weights and preprocessing.
    fingerprint: Hash of all that made the weights.
    accuracy: Share of the held-out pictures that it classifies correctly; None
      if its classes are not those of the data set, or nobody asked.
    batch_norm: Whether its BatchNorm has statistics, and can train on.
  """

  name: str
  module: Any
  classifier: Classifier
  fingerprint: str
  accuracy: float | None
  batch_norm: bool = True


def find_weights(network: str, image_size: int, place: str) -> str:
  """Finds the published weights of a network.

  Args:
    network: `name:width:size`.
    image_size: Side of the pictures of the run, in pixels.
    place: A file, a folder, or a name such as 'imagenet'.

  Raises:
    UserError: If they cannot be had.
  """
  return str(published.find(parse_network(network), image_size, place))


def published_network(
  network: str,
  path: str,
  pictures: Pictures,
  *,
  image_size: int,
  dataset: str,
  batch_size: int = 0,
  must_fit: bool = True,
  restrict: bool = False,
  preprocess: Normalise | None = None,
) -> Network:
  """Loads a network with published weights.

  Args:
    network: `name:width:size`.
    path: The file of its weights.
    pictures: Held-out pictures to measure the accuracy on.
    image_size: Side of the pictures of the run, in pixels.
    dataset: Name of the data set, for errors.
    batch_size: Pictures at a time; 0 measures no accuracy.
    must_fit: Whether it has to have the classes of the pictures.
    restrict: Whether, of ImageNet's 1,000 classes, it keeps those of the
      pictures alone.
    preprocess: In place of what the weights expect.

  Raises:
    UserError: If the weights do not fit the network or the pictures.
    DataError: If the file is broken.
  """
  name, names = parse_network(network), pictures.class_names
  module, classifier = load_classifier(name, image_size, path, preprocess)
  whole = module.num_classes == len(imagenet.wnids())
  if restrict and whole and len(names) != module.num_classes:
    classes = imagenet.labels_of(names)
    module, classifier = restricted(module, classifier, classes)
  fits = module.num_classes == len(names)
  if fits or must_fit:
    published.check_classes(path, module.num_classes, names, dataset)
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
    float(np.mean(correct(classifier, pictures, batch_size)))
    if fits and batch_size
    else None,
    batch_norm=any(bool(leaf.any()) for leaf in means),
  )


def trained_network(
  key: jax.Array,
  cache: Cache,
  network: str,
  train: Pictures,
  heldout: Pictures,
  epochs: int,
  *,
  config: Any,
  recipe: TrainConfig | None = None,
) -> Network:
  """Trains a network as a classifier of the data set, or finds it.

  Args:
    key: One key.
    cache: Keeps the weights.
    network: `name:width:size`.
    train: Pictures to train on.
    heldout: Pictures to measure the accuracy on; no choice depends on it.
    epochs: Number of epochs.
    config: With `image_size`, `dataset`, `seed` and `batch_size`.
    recipe: Of the training; the usual one of so many epochs if None.
  """
  name = parse_network(network)
  found = cached_classifier(
    key,
    cache,
    name,
    train,
    heldout,
    epochs,
    image_size=config.image_size,
    flip=may_mirror(config.dataset),
    identity={'seed': config.seed},
    batch_size=config.batch_size,
    mesh=mesh.all_devices(),
    recipe=recipe,
  )
  return Network(
    name.name, found.module, found.classifier, found.identity, found.accuracy
  )


def correct(
  classifier: Callable, pictures: Pictures, batch_size: int
) -> np.ndarray:
  """Tells which pictures a classifier gets right, bool[N]."""
  logits = predict(classifier, pictures.images, batch_size)
  # Decides which pictures are attacked: the same on every host.
  return hosts.agree(logits.argmax(-1) == pictures.labels)
