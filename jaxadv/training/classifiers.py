"""Training of image classifiers: victims, references, backbones."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import models
from jaxadv.classifier import Classifier, Normalise, from_linen, predict
from jaxadv.data.sources import Pictures
from jaxadv.inputs import as_float, as_labels, as_uint8, check_shape
from jaxadv.models import init_variables
from jaxadv.models.names import NetworkName
from jaxadv.models.pretrained import resized
from jaxadv.models.weights import native
from jaxadv.storage import Cache, code_version, read_json, write_json
from jaxadv.training.augment import flip_and_shift, random_shift
from jaxadv.training.loop import fit
from jaxadv.training.state import TrainConfig
from jaxadv.training.tasks import (
  Task,
  classification,
  gather_images,
  linen_apply,
)
from jaxadv.types import PyTree

# `(key, classifier, images, labels) -> images`, float32 in [0, 1].
Perturb = Callable[[jax.Array, Classifier, jax.Array, jax.Array], jax.Array]


def _init(module, size: int, channels: int):
  def init(key, data, member):
    del member
    return data.get('start') or init_variables(key, module, size, channels)

  return init


@functools.cache
def _task(
  module,
  shape: tuple[int, int, int],
  preprocess,
  flip: bool,
  perturb: Perturb | None,
) -> Task:
  # An eighth of the side: four pixels on CIFAR-10, as is usual there.
  pad = shape[0] // 8
  # The network may take other pictures than those that are stored.
  stored = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  size = jax.eval_shape(preprocess, stored).shape[1]
  shift = functools.partial(random_shift, pad=pad)
  augment = flip_and_shift(pad) if flip else shift
  init, network = _init(module, size, shape[-1]), linen_apply(module)
  if perturb is None:
    return classification(init, network, gather_images(augment, preprocess))

  # Pictures are changed in [0, 1], so preprocessing comes after that.
  def apply(variables, images, train, key):
    return network(variables, preprocess(images), train, key)

  task = classification(init, apply, gather_images(augment))

  def update(state, examples, mask, key, apply_gradients):
    change_key, update_key = jax.random.split(key)
    classifier = from_linen(module, state.variables, preprocess=preprocess)
    changed = perturb(
      change_key, classifier, examples['inputs'], examples['labels']
    )
    examples = examples | {'inputs': changed}
    return task.update(state, examples, mask, update_key, apply_gradients)

  return task._replace(update=update)


def fit_classifier(
  key: jax.Array,
  module,
  images: np.ndarray,
  labels: np.ndarray,
  config: TrainConfig,
  *,
  preprocess: Callable[[jax.Array], jax.Array],
  flip: bool,
  perturb: Perturb | None = None,
  start: PyTree | None = None,
  mesh: jax.sharding.Mesh | None = None,
  checkpoint_dir: str | os.PathLike[str] | None = None,
) -> PyTree:
  """Trains a backbone of `jaxadv.models`, from scratch or further.

  Pictures are shifted at random by up to an eighth of their side, and
  mirrored if asked. Nothing is selected on held-out pictures: the weights
  are those after the last epoch.

  Args:
    key: One key.
    module: A backbone.
    images: [N, H, H, C], uint8 or floating in [0, 1].
    labels: Integers [N].
    config: Epochs, batch size, optimizer and schedule.
    preprocess: From [0, 1] to what the network is to expect; hashable.
    flip: Whether a mirrored picture is still one of its class (photographs
      yes, digits no).
    perturb: `(key, classifier, images, labels) -> images` replaces every
      training batch, after augmentation; the classifier is the network in
      inference mode as it is before the step, the pictures are float32 in
      [0, 1]. Keep it: another function compiles anew. See
      `jaxadv.defences.adversarial_training`.
    start: Variables to start from; default fresh ones.
    mesh: Splits batches over its devices.
    checkpoint_dir: Folder to resume from after an interruption.

  Returns:
    `{'params': ..., 'batch_stats': ...}`.

  Raises:
    UserError: If pictures or labels are something else.
    DataError: If the loss is not finite or memory does not suffice.
  """
  check_shape(images)
  num_classes = getattr(module, 'num_classes', None)
  labels = as_labels(labels, len(images), num_classes=num_classes)
  if images.dtype != np.uint8:
    images = as_float(images)
  result = fit(
    key,
    _task(module, images.shape[1:], preprocess, flip, perturb),
    {'images': images, 'labels': labels}
    | ({} if start is None else {'start': start}),
    np.arange(len(labels)),
    None,
    config,
    mesh=mesh,
    checkpoint_dir=checkpoint_dir,
  )
  return result.state.variables


class Trained(NamedTuple):
  """A network that was trained as a classifier of a data set.

  Attributes:
    module: Linen module, a chain of stages.
    classifier: The module with weights and preprocessing.
    identity: Hash of all that made the weights.
    accuracy: Share of the held-out pictures that it classifies correctly.
  """

  module: nn.Module
  classifier: Classifier
  identity: str
  accuracy: float


def usual_recipe(num_epochs: int, num_pictures: int) -> TrainConfig:
  """Gives the training of a classifier from so many pictures."""
  return TrainConfig(
    num_epochs=num_epochs,
    # Small sets need more steps an epoch than batches of 128 would give.
    batch_size=128 if num_pictures > 5000 else 32,
    learning_rate=1e-3,
    optimizer='adamw:weight_decay=1e-2',
    schedule='cosine',
  )


def cached_classifier(
  key: jax.Array,
  cache: Cache,
  network: NetworkName,
  train: Pictures,
  heldout: Pictures,
  num_epochs: int,
  *,
  image_size: int,
  flip: bool,
  identity: dict[str, Any],
  batch_size: int = 256,
  mesh: jax.sharding.Mesh | None = None,
  recipe: Any = None,
  fit: Callable[..., PyTree] = fit_classifier,
) -> Trained:
  """Trains a backbone of `jaxadv.models`, or finds it in a cache.

  Args:
    key: One key; the weights are found again by it.
    cache: Keeps the weights.
    network: The backbone, its width and the size of its pictures.
    train: Pictures to train on.
    heldout: Pictures to measure the accuracy on; no choice depends on it.
    num_epochs: Number of epochs, of the recipe that there is by default.
    image_size: Side of the pictures, in pixels.
    flip: See `fit_classifier`.
    identity: What else tells this training from others; see `Cache.entry`.
    batch_size: Pictures at a time when the accuracy is measured.
    mesh: See `fit_classifier`.
    recipe: What `fit` takes as its fifth argument, by default `usual_recipe`;
      the weights are found again by it.
    fit: `fit_classifier`, or another of the same arguments: a function of a
      module, by whose name and code the weights are found again.

  Returns:
    The network.

  Raises:
    TypeError: If `fit` or `recipe` cannot be told from others by `as_plain`.
    DataError: If the loss is not finite, or memory or disk are full.
  """
  name, width, _ = network
  size = network.size_for(image_size)
  recipe = recipe or usual_recipe(num_epochs, len(train.labels))
  module = models.build(
    name,
    num_classes=len(train.class_names),
    width=width,
    image_size=size,
    **models.BACKBONES[name].from_scratch,
  )
  preprocess = resized(image_size, size, standardise(train.images))
  template = jax.eval_shape(
    lambda: models.init_variables(
      jax.random.key(0), module, size, train.images.shape[-1]
    )
  )
  settings = identity | {
    'key': key,
    'fit': fit,
    'module': module,
    'recipe': recipe,
    'preprocess': preprocess,
    'flip': flip,
    'train': train.fingerprint,
    'heldout': heldout.fingerprint,
    'size': size,
  }

  def make(folder, work):
    variables = fit(
      key,
      module,
      train.images,
      train.labels,
      recipe,
      preprocess=preprocess,
      flip=flip,
      mesh=mesh,
      checkpoint_dir=work,
    )
    native.write_variables(folder / 'variables.npz', variables)
    logits = predict(
      from_linen(module, variables, preprocess=preprocess),
      heldout.images,
      batch_size,
    )
    accuracy = float(np.mean(logits.argmax(-1) == heldout.labels))
    write_json(folder / 'accuracy.json', {'heldout': accuracy})

  version = code_version(__name__, fit.__module__)
  folder = cache.get_or_make('classifier', version, settings, make)
  variables = native.read_variables(folder / 'variables.npz', template)
  return Trained(
    module,
    from_linen(module, variables, preprocess=preprocess),
    folder.name,
    read_json(folder / 'accuracy.json')['heldout'],
  )


def standardise(images: np.ndarray) -> Normalise:
  """Gives the preprocessing that makes channels zero-mean with unit spread.

  Args:
    images: [N, H, W, C], uint8, or floating in [0, 1], which is rounded.
  """
  scaled = as_uint8(images).reshape(-1, images.shape[-1]) / 255
  round4 = lambda values: tuple(round(float(v), 4) for v in values)
  return Normalise(round4(scaled.mean(0)), round4(scaled.std(0)))
