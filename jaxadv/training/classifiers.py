"""Training of image classifiers: victims, references, backbones."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.models import init_variables
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


@functools.cache
def _task(module, image_size: int, preprocess, flip: bool) -> Task:
  # An eighth of the side: four pixels on CIFAR-10, as is usual there.
  pad = image_size // 8
  # The network may take other pictures than those that are stored.
  stored = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  size = jax.eval_shape(preprocess, stored).shape[1]
  shift = functools.partial(random_shift, pad=pad)
  return classification(
    lambda key, data, member: init_variables(key, module, size),
    linen_apply(module),
    gather_images(flip_and_shift(pad) if flip else shift, preprocess),
  )


def fit_classifier(
  key: jax.Array,
  module,
  images: np.ndarray,
  labels: np.ndarray,
  config: TrainConfig,
  *,
  preprocess: Callable[[jax.Array], jax.Array],
  flip: bool,
  mesh: jax.sharding.Mesh | None = None,
  checkpoint_dir: str | os.PathLike[str] | None = None,
) -> PyTree:
  """Trains a backbone of `jaxadv.models` from scratch.

  Pictures are shifted at random by up to an eighth of their side, and
  mirrored if asked. Nothing is selected on held-out pictures: the weights
  are those after the last epoch.

  Args:
    key: One key.
    module: A backbone.
    images: uint8[N, H, H, C].
    labels: int32[N].
    config: Epochs, batch size, optimizer and schedule.
    preprocess: From [0, 1] to what the network is to expect; hashable.
    flip: Whether a mirrored picture is still one of its class (photographs
      yes, digits no).
    mesh: Splits batches over its devices.
    checkpoint_dir: Folder to resume from after an interruption.

  Returns:
    `{'params': ..., 'batch_stats': ...}`.

  Raises:
    DataError: If the loss is not finite or memory does not suffice.
  """
  result = fit(
    key,
    _task(module, images.shape[1], preprocess, flip),
    {'images': images, 'labels': labels},
    np.arange(len(labels)),
    None,
    config,
    mesh=mesh,
    checkpoint_dir=checkpoint_dir,
  )
  return result.state.variables
