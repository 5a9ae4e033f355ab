"""A detector that needs no pretrained network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import models
from jaxadv.classifier import from_linen
from jaxadv.detectors.backbone import Design, backbone_detector
from jaxadv.errors import UserError
from jaxadv.training import TrainConfig
from jaxadv.types import (
  Batch,
  Detector,
  Images,
  Keys,
  PyTree,
  Scores,
  make_detector,
)


class NetworkState(NamedTuple):
  """What a network detector has learnt.

  Attributes:
    initial: The network's initial variables; its first stage keeps them.
    trained: State of the backbone detector on top.
  """

  initial: PyTree
  trained: Any


@functools.cache
def _init(module: Any, stop: str) -> Callable[..., PyTree]:
  # Cached, since compiling it takes longer than training some detectors.
  return jax.jit(functools.partial(module.init, stop=stop))


def network_detector(
  name: str = 'vgg11',
  *,
  width: float = 0.125,
  image_size: int = 32,
  config: TrainConfig = TrainConfig(num_epochs=10, learning_rate=1e-3),
) -> Detector:
  """Makes a detector that is a small network trained from scratch.

  The early stages of a backbone, freshly initialised, then global average
  pooling and one logit; only the first stage stays as drawn. It never asks
  the classifier that `fit` and `score` are given, so it serves any.

  Args:
    name: One of `jaxadv.models.BACKBONES`.
    width: Multiplies the channels; the published network has 1.0.
    image_size: Side of the square pictures, in pixels; of channels they may
      have any number.
    config: Epochs, batch size, optimizer and schedule.

  Returns:
    A `Detector`; whatever is not of kind 0 counts as attacked. Scores are
    logits and differentiable.

  Raises:
    UserError: If the network cannot be built, or (by `fit` and `score`) the
      pictures are of another size.
  """
  backbone = models.get_backbone(name)
  module = models.build(
    name,
    # The layer of classes is left out of detectors.
    num_classes=1,
    width=width,
    image_size=image_size,
    **backbone.from_scratch,
  )
  detector = backbone_detector(
    Design(
      module,
      frozen_until=models.stage_names(module)[0],
      # Traces of an attack are small and local; later stages cost time only.
      last_stage=backbone.split,
      hidden=(),
    ),
    config,
  )

  def fit(
    key: jax.Array,
    classifier: Any,
    train: Iterable[Batch],
    valid: Iterable[Batch],
  ) -> NetworkState:
    del classifier
    key_initial, key_fit = jax.random.split(key)
    shape = next(iter(train)).images.shape[1:]
    _check_size(shape, image_size)
    images = jnp.zeros((1, *shape), jnp.float32)
    initial = _init(module, backbone.split)(key_initial, images)
    network = from_linen(module, initial)
    return NetworkState(initial, detector.fit(key_fit, network, train, valid))

  def score(
    keys: Keys | None,
    classifier: Any,
    state: NetworkState,
    images: Images,
  ) -> Scores:
    del classifier
    _check_size(images.shape[1:], image_size)
    network = from_linen(module, state.initial)
    return detector.score(keys, network, state.trained, images)

  return make_detector(fit, score)


def _check_size(shape: tuple[int, ...], image_size: int) -> None:
  if shape[:2] != (image_size, image_size):
    raise UserError(
      f'the pictures have {shape[0]}x{shape[1]} pixels, but this '
      f'network_detector was made for {image_size}x{image_size}; make it with '
      'their image_size, or resize them with jaxadv.data.images.resize'
    )
