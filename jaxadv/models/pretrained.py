"""Classifiers made of a backbone's name and a file of weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxadv import models
from jaxadv.classifier import Classifier, Resized, from_linen
from jaxadv.models.names import NetworkName
from jaxadv.models.weights import published
from jaxadv.storage import read_npz

Preprocess = Callable[[jax.Array], jax.Array]


def load_classifier(
  network: NetworkName,
  image_size: int,
  path: str | os.PathLike[str],
  preprocess: Preprocess | None = None,
) -> tuple[nn.Module, Classifier]:
  """Loads a network with its weights and its preprocessing.

  Args:
    network: The backbone, its width and the size of its pictures.
    image_size: Side of the pictures that the classifier is given, in pixels;
      it resizes them if the network takes others.
    path: A file (.h5, .npz or .safetensors).
    preprocess: From [0, 1] to what the weights expect; None for what the
      published weights of the backbone do.

  Returns:
    The module and the classifier.

  Raises:
    DataError: If the file is absent or broken.
    UserError: If names or shapes in the file do not fit.
  """
  name, width, _ = network
  size = network.size_for(image_size)
  module = models.build(
    name,
    num_classes=published.num_classes(path),
    width=width,
    image_size=size,
    **_options(name, path),
  )
  template = jax.eval_shape(
    lambda: models.init_variables(jax.random.key(0), module, size)
  )
  variables = published.load(name, width, size, path, module, template)
  preprocess = preprocess or models.BACKBONES[name].preprocess
  return module, from_linen(
    module, variables, preprocess=resized(image_size, size, preprocess)
  )


def restricted(
  module: Any, classifier: Classifier, classes: Sequence[int]
) -> tuple[Any, Classifier]:
  """Keeps some of the classes that a network tells apart.

  Args:
    module: The network, a backbone of `jaxadv.models`.
    classifier: It with its weights.
    classes: Their labels, in the order that they are to have.

  Returns:
    The network with as many logits, those of the classes, and the classifier.
  """
  chosen = np.asarray(classes)
  *_, head = models.stage_names(module)
  params = dict(classifier.variables['params'])
  params[head] = jax.tree.map(
    lambda leaf: (
      leaf[..., chosen] if leaf.shape[-1:] == (module.num_classes,) else leaf
    ),
    params[head],
  )
  module = module.clone(num_classes=len(chosen))
  variables = {**classifier.variables, 'params': params}
  return module, from_linen(module, variables, preprocess=classifier.preprocess)


def resized(image_size: int, size: int, preprocess: Preprocess) -> Preprocess:
  """Puts resizing before a preprocessing, where a network needs it.

  Args:
    image_size: Side of the pictures that are given, in pixels.
    size: Side of those that the network takes.
    preprocess: The network's own preprocessing.
  """
  return preprocess if size == image_size else Resized(size, preprocess)


def _options(name: str, path: str | os.PathLike[str]) -> dict:
  """Gives the options of a network that was trained from scratch here.

  The published VGGs have no BatchNorm, so its statistics tell them apart.
  """
  if Path(path).suffix == '.npz' and any(
    key.startswith('batch_stats/') for key in read_npz(path)
  ):
    return models.BACKBONES[name].from_scratch
  return {}
