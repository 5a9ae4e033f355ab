"""A network on the picture itself (DET_org)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxadv.detectors.feature_network import (
  RECIPE,
  Features,
  Scale,
  feature_detector,
)
from jaxadv.training import TrainConfig
from jaxadv.types import Detector, Images


def standardising(images: Images) -> Scale:
  """Gives the scale that makes each channel zero-mean with unit spread.

  Args:
    images: float32[N, H, W, C].

  Returns:
    The scale; a channel that is the same everywhere becomes 0.
  """
  mean, spread = jnp.mean(images, (0, 1, 2)), jnp.std(images, (0, 1, 2))
  return Scale(mean, 1 / jnp.maximum(spread, 1e-3))


PIXELS = Features(lambda classifier, images: images, standardising)


def pixel_detector(
  module: nn.Module, config: TrainConfig = RECIPE, **options: Any
) -> Detector:
  """Makes a detector of a network on pixels; it never asks the classifier.

  Args:
    module: As of `feature_detector`.
    config: Epochs, batch size, optimizer and schedule.
    **options: As of `jaxadv.training.fit` (mesh, checkpoints, ...).

  Returns:
    A `Detector`; scores are logits, differentiable.

  Departs from the paper: Gong et al. train a smaller network; Li et al. have
  VGG11 in its place, which is `models.build('vgg11', num_classes=1, ...)`.

  Example:
    >>> detector = pixel_detector(module)
    >>> state = detector.fit(key, None, train, valid)
    >>> scores = detector.score(None, None, state, images)

  References:
    Gong et al., Adversarial and Clean Data Are Not Twins, 2017,
    https://arxiv.org/abs/1704.04960, section 4. Li et al., Are L2 Adversarial
    Examples Intrinsically Different?, 2020, section 4.
  """
  return feature_detector(PIXELS, module, config, **options)
