"""Classifiers made of a backbone's name and a file of weights.

`load_classifier` is the whole way of weights, step by step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxadv import models
from jaxadv.classifier import Classifier, Resized, from_linen
from jaxadv.errors import UserError
from jaxadv.models.names import NetworkName
from jaxadv.models.weights import formats, published

Preprocess = Callable[[jax.Array], jax.Array]


def load_classifier(
  network: NetworkName,
  image_size: int,
  where: str | os.PathLike[str],
  preprocess: Preprocess | None = None,
) -> tuple[nn.Module, Classifier]:
  """Loads a network with its weights and its preprocessing.

  Args:
    network: The backbone, its width and the size of its pictures.
    image_size: Side of the pictures that the classifier is given, in pixels;
      it resizes them if the network takes others.
    where: A file (.h5, .npz or .safetensors), a folder, or the name of
      published weights; see `published.find`.
    preprocess: From [0, 1] to what the weights expect; None for what the
      published weights of the backbone do.

  Returns:
    The module and the classifier.

  Raises:
    DataError: If the file is broken or was changed, or a value is not finite.
    UserError: If there is no such file, it holds no classifier, or its names
      or shapes do not fit.
  """
  name, width, _ = network
  size = network.size_for(image_size)

  # Find and read.
  path = published.find(network, image_size, where)
  layout, arrays = formats.read(path)

  # Build the network that they are of.
  own = layout == 'own'
  # The published VGGs have no BatchNorm; those trained here do.
  trained_here = own and any(n.startswith('batch_stats/') for n in arrays)
  module = models.build(
    name,
    num_classes=formats.num_classes(arrays, source=path),
    width=width,
    image_size=size,
    **(models.BACKBONES[name].from_scratch if trained_here else {}),
  )
  if not own and getattr(module, 'small_input', False):
    # Every shape fits, but the network is another function.
    raise UserError(
      f'{path} holds weights of {name} with a stem of stride 2, but for '
      f'pictures of {size} pixels it has stride 1; let it enlarge them, as in '
      f'{name}:{width:g}:64'
    )

  # Convert by name and check.
  template = jax.eval_shape(
    lambda: models.init_variables(jax.random.key(0), module, size)
  )
  variables = formats.to_variables(layout, arrays, template, source=path)

  # Preprocess.
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
