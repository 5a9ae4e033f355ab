"""Colour space conversions and shifts of hue and saturation.

Hue, saturation and value all lie in [0, 1]; hue is a fraction of the circle.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxadv.errors import UserError
from jaxadv.inputs import as_float
from jaxadv.types import Images


def _checked(images: ArrayLike) -> jax.Array:
  channels = np.shape(images)[-1]
  if channels != 3:
    raise UserError(
      f'pictures have {channels} channels but a change of colour '
      'needs 3 (RGB, last axis); repeat the channel of grey pictures'
    )
  return jnp.asarray(as_float(images))


def rgb_to_hsv(images: ArrayLike) -> jax.Array:
  """Converts RGB to hue, saturation and value.

  Args:
    images: [..., 3], floating in [0, 1] or uint8.

  Returns:
    float32[..., 3] in [0, 1]; hue is 0 where a pixel is grey.

  Raises:
    UserError: If the last axis is not 3 long, or the range another one.
  """
  images = _checked(images)
  red, green, blue = jnp.moveaxis(images, -1, 0)
  value = jnp.max(images, axis=-1)
  chroma = value - jnp.min(images, axis=-1)
  divisor = jnp.where(chroma > 0, chroma, 1)
  sixth = jnp.where(
    value == red,
    (green - blue) / divisor % 6,
    jnp.where(
      value == green,
      2 + (blue - red) / divisor,
      4 + (red - green) / divisor,
    ),
  )
  hue = jnp.where(chroma > 0, sixth / 6, 0)
  saturation = chroma / jnp.where(value > 0, value, 1)
  return jnp.stack([hue, saturation, value], axis=-1)


def hsv_to_rgb(images: Images) -> jax.Array:
  """Converts hue, saturation and value to RGB.

  Args:
    images: float32[..., 3] in [0, 1].

  Returns:
    float32[..., 3] in [0, 1].

  Raises:
    UserError: If the last axis is not 3 long, or the range another one.
  """
  images = _checked(images)
  hue, saturation, value = jnp.moveaxis(images, -1, 0)

  def channel(offset: int) -> jax.Array:
    # Each channel is a trapezium over the hue circle, shifted by a third.
    position = (offset + 6 * hue) % 6
    dip = jnp.clip(jnp.minimum(position, 4 - position), 0, 1)
    return value * (1 - saturation * dip)

  return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def shift_hsv(
  images: ArrayLike, hue: jax.Array, saturation: jax.Array
) -> Images:
  """Turns the hue and shifts the saturation of whole pictures.

  Args:
    images: [B, H, W, 3], RGB, floating in [0, 1] or uint8.
    hue: float32[B], added to the hue, modulo 1.
    saturation: float32[B], added to the saturation, clipped to [0, 1].

  Returns:
    float32[B, H, W, 3], RGB in [0, 1]; the value (brightness) is unchanged.

  Raises:
    UserError: If the pictures do not have three channels, or their range is
      another one.
  """
  h, s, v = jnp.moveaxis(rgb_to_hsv(images), -1, 0)
  h = (h + hue[:, None, None]) % 1
  s = jnp.clip(s + saturation[:, None, None], 0, 1)
  return jnp.clip(hsv_to_rgb(jnp.stack([h, s, v], axis=-1)), 0, 1)
