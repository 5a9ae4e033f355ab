"""Random changes of training pictures; pure, for use inside `jit`."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
  """Mirrors each picture left to right with probability one half.

  Args:
    key: One key.
    images: [B, H, W, C], any dtype.

  Returns:
    Same shape and dtype.
  """
  # Of this type, or 64-bit JAX draws other numbers.
  half = jnp.float32(0.5)
  flip = jax.random.bernoulli(key, half, shape=(images.shape[0], 1, 1, 1))
  return jnp.where(flip, images[:, :, ::-1], images)


def random_shift(key: jax.Array, images: jax.Array, pad: int) -> jax.Array:
  """Moves each picture by up to `pad` pixels along height and width.

  Every whole number of pixels in [-pad, pad] is equally likely. What comes in
  from outside is black (zero), as in the usual CIFAR-10 recipe.

  Args:
    key: One key.
    images: [B, H, W, C], any dtype.
    pad: Largest shift in pixels, at least 0.

  Returns:
    Same shape and dtype.
  """
  shape = images.shape[1:]
  padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  corners = jax.random.randint(
    key, (images.shape[0], 2), 0, 2 * pad + 1, jnp.int32
  )

  def crop(image, corner):
    start = (corner[0], corner[1], jnp.int32(0))
    return jax.lax.dynamic_slice(image, start, shape)

  return jax.vmap(crop)(padded, corners)


def flip_and_shift(pad: int):
  """Makes the usual augmentation of small photographs.

  Args:
    pad: As in `random_shift`.

  Returns:
    `(key, images) -> images`.
  """

  def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    flip_key, shift_key = jax.random.split(key)
    return random_shift(shift_key, random_flip(flip_key, images), pad)

  return augment
