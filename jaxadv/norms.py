"""Per-example norms, and balls as values that attacks take as an argument.

A picture's norm runs over all of its pixels and channels. Radii are in image
units: 8/255 is eight grey levels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv.errors import UserError
from jaxadv.utils import check_range

Radius = float | jax.Array

_FAN_IN = 16


def per_row(values: jax.Array, like: jax.Array) -> jax.Array:
  """Appends axes to `values` [B], so that they broadcast against `like`."""
  return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def l2(images: jax.Array) -> jax.Array:
  """Euclidean norm of every row: [B, ...] to float32[B].

  The order of the additions is spelt out: XLA chooses that of `jnp.sum` by
  the size of the batch, and a picture's result would depend on its company.
  """
  parts = images.reshape(images.shape[0], -1) ** 2
  while parts.shape[1] > 1:
    width = min(_FAN_IN, parts.shape[1])
    missing = -parts.shape[1] % width
    parts = jnp.pad(parts, [(0, 0), (0, missing)])
    # Level by level: fused into one, the whole tree would be one expression.
    parts = jax.lax.optimization_barrier(parts)
    parts = functools.reduce(jnp.add, jnp.split(parts, width, axis=1))
  return jnp.sqrt(parts[:, 0])


def linf(images: jax.Array) -> jax.Array:
  """Largest absolute value of every row: [B, ...] to float32[B]."""
  return jnp.max(jnp.abs(images), axis=range(1, images.ndim))


def unit_l2(images: jax.Array) -> jax.Array:
  """Scales every row to Euclidean length one; a row of zeros stays.

  Rows are first divided by their largest entry: gradients of a saturated
  softmax are so small that their squares would underflow.
  """
  largest = per_row(linf(images), images)
  scaled = images / jnp.where(largest > 0, largest, 1)
  length = per_row(l2(scaled), images)
  return scaled / jnp.where(length > 0, length, 1)


class Ball(NamedTuple):
  """The set of perturbations of at most a given norm.

  The functions take the radii as an argument, float32[B], because an attack
  keeps them with its rows.

  Attributes:
    norm: 'linf' or 'l2'.
    epsilon: The radius in image units, a scalar or float32[B].
    distance: `delta -> float32[B]`, the norm of every row.
    project: `(delta, epsilon) -> delta`, the nearest point of the ball.
    steepest: `gradient -> delta` of norm one along which a linear function
      rises fastest.
    sample: `(keys, shape, epsilon) -> delta`, uniform in the ball; `shape` is
      that of the whole batch.
  """

  norm: str
  epsilon: Radius
  distance: Callable[[jax.Array], jax.Array]
  project: Callable[[jax.Array, jax.Array], jax.Array]
  steepest: Callable[[jax.Array], jax.Array]
  sample: Callable[[jax.Array, tuple[int, ...], jax.Array], jax.Array]


def linf_ball(epsilon: Radius) -> Ball:
  """The ball in which no pixel moves by more than `epsilon`.

  Args:
    epsilon: Radius in image units, in (0, 1]; a scalar or float32[B], traced
      or not.

  Returns:
    A `Ball`.

  Raises:
    UserError: If a concrete epsilon lies outside (0, 1].
  """
  advice = '; pixels lie in [0, 1], so eight grey levels are 8/255'
  check_range('epsilon', epsilon, 0, 1, open_low=True, advice=advice)

  def project(delta, epsilon):
    bound = per_row(epsilon, delta)
    return jnp.clip(delta, -bound, bound)

  def sample(keys, shape, epsilon):
    draw = lambda key: jax.random.uniform(key, shape[1:], minval=-1.0)
    delta = jax.vmap(draw)(keys)
    return delta * per_row(epsilon, delta)

  return Ball('linf', epsilon, linf, project, jnp.sign, sample)


def l2_ball(epsilon: Radius) -> Ball:
  """The ball of perturbations of Euclidean length at most `epsilon`.

  Args:
    epsilon: Radius in image units, above 0; a scalar or float32[B], traced
      or not. The length of a picture of HxWxC ones is sqrt(HWC).

  Returns:
    A `Ball`.

  Raises:
    UserError: If a concrete epsilon is not a positive number.
  """
  check_range('epsilon', epsilon, 0, float('inf'), open_low=True)

  def project(delta, epsilon):
    factor = epsilon / jnp.maximum(l2(delta), epsilon)
    return delta * per_row(factor, delta)

  def sample(keys, shape, epsilon):
    def draw(key):
      key_direction, key_length = jax.random.split(key)
      size = 1
      for side in shape[1:]:
        size *= side
      length = jax.random.uniform(key_length) ** (1 / size)
      return jax.random.normal(key_direction, shape[1:]), length

    direction, length = jax.vmap(draw)(keys)
    return unit_l2(direction) * per_row(length * epsilon, direction)

  return Ball('l2', epsilon, l2, project, unit_l2, sample)


BALLS: dict[str, Callable[[Radius], Ball]] = {
  'linf': linf_ball,
  'l2': l2_ball,
}


def ball(norm: str, epsilon: Radius) -> Ball:
  """Builds a ball by the name of its norm.

  Args:
    norm: 'linf' or 'l2'.
    epsilon: Radius in image units.

  Returns:
    A `Ball`.

  Raises:
    UserError: If the norm is unknown or epsilon out of its range.
  """
  if norm not in BALLS:
    raise UserError(f'norm is {norm!r} but must be one of {", ".join(BALLS)}')
  return BALLS[norm](epsilon)
