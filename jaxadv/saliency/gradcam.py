"""Gradient-weighted class activation maps."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxadv.inputs import as_floating
from jaxadv.types import Images, Labels


def gradcam(
  front: Callable[[jax.Array], jax.Array],
  back: Callable[[jax.Array], jax.Array],
  images: Images,
  labels: Labels,
) -> jax.Array:
  """Shows which parts of a picture speak for a class; pure, jittable.

  The channels of a convolutional layer are added up, each weighted by the
  mean over space of the gradient of the logit with respect to it; what is
  negative is cut off. Any network that can be run in two halves will do: for
  a backbone, `front = lambda x: net.apply(variables, preprocess(x), stop=s)`
  and `back = lambda h: net.apply(variables, h, start=s)`.

  Args:
    front: From images to the layer, float32[B, h, w, C].
    back: From there to logits, float32[B, K]; rows must not depend on each
      other.
    images: float32[B, H, W, 1 or 3] in [0, 1].
    labels: int32[B], the classes to explain.

  Returns:
    float32[B, H, W] in [0, 1], resized bilinearly to the picture; the largest
    value of a map is 1, or 0 where nothing speaks for the class. A map is NaN
    where a gradient is not finite.

  Departs from the paper: each map is divided by its largest value.

  References:
    Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via
    Gradient-based Localization, 2017, https://arxiv.org/abs/1610.02391,
    section 3, equations 1 and 2.
  """
  images = jnp.asarray(as_floating(images))
  layer = front(images)

  def chosen(layer: jax.Array) -> jax.Array:
    logits = back(layer)
    return jnp.sum(jnp.take_along_axis(logits, labels[:, None], axis=-1))

  weights = jnp.mean(jax.grad(chosen)(layer), axis=(1, 2), keepdims=True)
  # What is -inf would be cut off as if it were a number.
  weights = jnp.where(jnp.isfinite(weights), weights, jnp.nan)
  maps = jax.nn.relu(jnp.sum(weights * layer, axis=-1))
  maps = jax.image.resize(maps, images.shape[:3], 'linear')
  largest = jnp.max(maps, axis=(1, 2), keepdims=True)
  # Not `> 0`, which would hide NaN.
  return jnp.where(largest == 0, 0, maps / jnp.where(largest == 0, 1, largest))
