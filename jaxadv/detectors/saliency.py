"""A network on the picture beside its saliency map (DET_sal)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxadv.detectors.feature_network import (
  RECIPE,
  Features,
  Scale,
  feature_detector,
)
from jaxadv.detectors.input_sensitivity import unit_size
from jaxadv.detectors.pixels import standardising
from jaxadv.inputs import as_floating
from jaxadv.losses import logit_of
from jaxadv.norms import per_row
from jaxadv.training import TrainConfig
from jaxadv.types import ClassifierLike, Detector, Images


def logit_saliency(classifier: ClassifierLike, images: Images) -> jax.Array:
  """Computes the size of the gradient of the largest logit.

  Args:
    classifier: Any deterministic classifier.
    images: float32[B, H, W, C] in [0, 1].

  Returns:
    float32[B, H, W, C], at least 0; NaN where a logit of the picture is.

  References:
    Simonyan et al., Deep Inside Convolutional Networks, 2014,
    https://arxiv.org/abs/1312.6034, section 3 (there the largest over the
    channels).
  """

  def total(images: Images) -> tuple[jax.Array, jax.Array]:
    logits = classifier(images)
    return jnp.sum(logit_of(logits, jnp.argmax(logits, axis=-1))), logits

  images = jnp.asarray(as_floating(images))
  maps, logits = jax.grad(total, has_aux=True)(images)
  # The gradient of a NaN can be a number.
  broken = per_row(jnp.any(jnp.isnan(logits), axis=-1), maps)
  return jnp.where(broken, jnp.nan, jnp.abs(maps))


def _beside(classifier: ClassifierLike, images: Images) -> jax.Array:
  maps = logit_saliency(classifier, images)
  return jnp.concatenate([images, maps], axis=-1)


def _fit_scale(features: jax.Array) -> Scale:
  images, maps = jnp.split(features, 2, axis=-1)
  parts = standardising(images), unit_size(maps)
  return Scale(*(jnp.concatenate(each) for each in zip(*parts, strict=True)))


SALIENCY = Features(_beside, _fit_scale)


def saliency_detector(
  module: nn.Module,
  config: TrainConfig = RECIPE,
  *,
  beta: float | None = 10.0,
  **options: Any,
) -> Detector:
  """Makes a detector of a network on pictures and their saliency maps.

  It sees 2C channels: those of the picture, each standardised, and those of
  `logit_saliency`, times one constant of the training set.

  Args:
    module: As of `feature_detector`.
    config: Epochs, batch size, optimizer and schedule.
    beta: As of `input_sensitivity_detector`.
    **options: As of `jaxadv.training.fit` (mesh, checkpoints, ...).

  Returns:
    A `Detector`; scores are logits, and the surrogate has the same values.

  Departs from the paper: Zhang et al. describe saliency of inner layers; here
  it is that of the predicted class's logit with respect to the picture.

  References:
    Zhang et al., Detecting Adversarial Perturbations with Saliency, 2018,
    https://arxiv.org/abs/1803.08773.
  """
  return feature_detector(SALIENCY, module, config, beta=beta, **options)
