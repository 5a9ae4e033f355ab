"""Per-example norms, and balls as values that attacks take as an argument.

A picture's norm runs over all of its pixels and channels. Radii are in image
units: 8/255 is eight grey levels.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.errors import DoubtWarning, UserError
from jaxadv.types import Keys
from jaxadv.utils import check_range, check_whole

Radius = float | jax.Array

_FAN_IN = 16
# All steps together are this many radii long, so that an iterate can cross the
# ball from one side to the other and still turn.
_PATH_FACTOR = 2.5


def per_row(values: jax.Array, like: jax.Array) -> jax.Array:
  """Appends axes to `values` [B], so that they broadcast against `like`."""
  return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def total(images: jax.Array) -> jax.Array:
  """Sum of every row: [B, ...] to float32[B].

  The order of the additions is spelt out: XLA chooses that of `jnp.sum` by
  the size of the batch, and a picture's result would depend on its company.
  """
  parts = images.reshape(images.shape[0], -1)
  while parts.shape[1] > 1:
    width = min(_FAN_IN, parts.shape[1])
    missing = -parts.shape[1] % width
    parts = jnp.pad(parts, [(0, 0), (0, missing)])
    # Level by level: fused into one, the whole tree would be one expression.
    parts = jax.lax.optimization_barrier(parts)
    parts = functools.reduce(jnp.add, jnp.split(parts, width, axis=1))
  return parts[:, 0]


def l2(images: jax.Array) -> jax.Array:
  """Euclidean norm of every row: [B, ...] to float32[B]."""
  return jnp.sqrt(total(images**2))


def l1(images: jax.Array) -> jax.Array:
  """Sum of the absolute values of every row: [B, ...] to float32[B]."""
  return total(jnp.abs(images))


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


def without_blocked(direction: jax.Array, images: jax.Array) -> jax.Array:
  """Zeroes the entries of a direction that would leave [0, 1] at once."""
  blocked = ((images <= 0) & (direction < 0)) | (
    (images >= 1) & (direction > 0)
  )
  return jnp.where(blocked, 0, direction)


class Ball(NamedTuple):
  """The set of perturbations of at most a given norm.

  The functions take the radii as an argument, float32[B], because an attack
  keeps them with its rows.

  Attributes:
    norm: 'linf', 'l2' or 'l1'.
    epsilon: The radius in image units, a scalar or float32[B].
    distance: `delta -> float32[B]`, the norm of every row.
    project: `(delta, epsilon) -> delta`, the nearest point of the ball.
    steepest: `gradient -> delta` of norm one along which a linear function
      rises fastest (in L1 nearly, see `l1_ball`).
    sample: `(keys, shape, epsilon) -> delta`, uniform in the ball; `shape` is
      that of the whole batch.
  """

  norm: str
  epsilon: Radius
  distance: Callable[[jax.Array], jax.Array]
  project: Callable[[jax.Array, jax.Array], jax.Array]
  steepest: Callable[[jax.Array], jax.Array]
  sample: Callable[[Keys, tuple[int, ...], jax.Array], jax.Array]


def _check_epsilon(
  epsilon: Any, largest: float = float('inf'), advice: str = ''
) -> None:
  if isinstance(epsilon, list | tuple):
    raise UserError(
      f'epsilon is a {type(epsilon).__name__} of {len(epsilon)} but must be a '
      'number, or an array with one for each picture; run an attack at several '
      'radii with evaluate_over'
    )
  check_range('epsilon', epsilon, 0, largest, open_low=True, advice=advice)


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
  _check_epsilon(epsilon, 1, advice)

  def project(delta: jax.Array, epsilon: jax.Array) -> jax.Array:
    bound = per_row(epsilon, delta)
    return jnp.clip(delta, -bound, bound)

  def sample(
    keys: Keys, shape: tuple[int, ...], epsilon: jax.Array
  ) -> jax.Array:
    draw = lambda key: jax.random.uniform(
      key, shape[1:], jnp.float32, minval=-1.0
    )
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
  _check_epsilon(epsilon)

  def project(delta: jax.Array, epsilon: jax.Array) -> jax.Array:
    factor = epsilon / jnp.maximum(l2(delta), epsilon)
    return delta * per_row(factor, delta)

  def sample(
    keys: Keys, shape: tuple[int, ...], epsilon: jax.Array
  ) -> jax.Array:
    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
      key_direction, key_length = jax.random.split(key)
      size = 1
      for side in shape[1:]:
        size *= side
      length = jax.random.uniform(key_length, dtype=jnp.float32) ** (1 / size)
      return jax.random.normal(key_direction, shape[1:], jnp.float32), length

    direction, length = jax.vmap(draw)(keys)
    return unit_l2(direction) * per_row(length * epsilon, direction)

  return Ball('l2', epsilon, l2, project, unit_l2, sample)


def l1_ball(epsilon: Radius, share: float = 0.01) -> Ball:
  """The ball of perturbations whose absolute values add up to `epsilon`.

  A linear function rises fastest in it along a single channel of a single
  pixel, which a network is far from following. So `steepest` spends a step
  evenly on a share of the channels, those with the largest gradient, and
  rises almost as fast.

  Args:
    epsilon: Radius in image units, above 0; a scalar or float32[B], traced
      or not. A picture of HxWxC ones has norm HWC.
    share: Share of the HxWxC channels that a step moves, in (0, 1], rounded
      up to a whole number of them, exactly as a quantile of 1 - share does.

  Returns:
    A `Ball`.

  Raises:
    UserError: If a concrete epsilon is not a positive number, or `share` lies
      outside (0, 1].

  References:
    Tramer and Boneh, Adversarial Training and Robustness for Multiple
    Perturbations, 2019, https://arxiv.org/abs/1904.13000, section 4 (the
    direction). Duchi et al., Efficient Projections onto the L1-Ball, 2008,
    figure 1 (the projection).
  """
  _check_epsilon(epsilon)
  check_range('share', share, 0, 1, open_low=True)

  def project(delta: jax.Array, epsilon: jax.Array) -> jax.Array:
    # All sizes shrink by one threshold: that at which they add up to epsilon.
    sizes = jnp.sort(jnp.abs(delta).reshape(len(delta), -1), descending=True)
    excess = jnp.cumsum(sizes, axis=1) - epsilon[:, None]
    thresholds = excess / jnp.arange(1, sizes.shape[1] + 1, dtype=jnp.float32)
    last = jnp.sum(sizes > thresholds, axis=1, keepdims=True) - 1
    threshold = jnp.take_along_axis(thresholds, last, axis=1)[:, 0]
    shrunk = jnp.maximum(jnp.abs(delta) - per_row(threshold, delta), 0)
    # The rounding of a long sum is taken out here.
    factor = epsilon / jnp.maximum(l1(shrunk), 1e-30)
    shrunk = jnp.sign(delta) * shrunk * per_row(factor, delta)
    return jnp.where(per_row(l1(delta) > epsilon, delta), shrunk, delta)

  def steepest(gradient: jax.Array) -> jax.Array:
    sizes = jnp.abs(gradient).reshape(len(gradient), -1)
    num_moved = int(share * (sizes.shape[1] - 1)) + 1
    smallest = jax.lax.top_k(sizes, num_moved)[0][:, -1:]
    moved = (sizes >= smallest) & (sizes > 0)
    num = jnp.sum(moved, axis=1, keepdims=True, dtype=jnp.float32)
    each = moved / jnp.maximum(num, 1)
    return jnp.sign(gradient) * each.reshape(gradient.shape)

  def sample(
    keys: Keys, shape: tuple[int, ...], epsilon: jax.Array
  ) -> jax.Array:
    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
      key_delta, key_rest = jax.random.split(key)
      rest = jax.random.exponential(key_rest, dtype=jnp.float32)
      return jax.random.laplace(key_delta, shape[1:], jnp.float32), rest

    # Exponential draws over their sum are uniform in a simplex; one more draw
    # than there are channels keeps the points off its surface.
    delta, rest = jax.vmap(draw)(keys)
    return delta * per_row(epsilon / (l1(delta) + rest), delta)

  return Ball('l1', epsilon, l1, project, steepest, sample)


BALLS: dict[str, Callable[[Radius], Ball]] = {
  'linf': linf_ball,
  'l2': l2_ball,
  'l1': l1_ball,
}


def ball(norm: str, epsilon: Radius) -> Ball:
  """Builds a ball by the name of its norm.

  Args:
    norm: 'linf', 'l2' or 'l1'.
    epsilon: Radius in image units.

  Returns:
    A `Ball`.

  Raises:
    UserError: If the norm is unknown or epsilon out of its range.
  """
  if norm not in BALLS:
    raise UserError(f'norm is {norm!r} but must be one of {", ".join(BALLS)}')
  return BALLS[norm](epsilon)


def as_ball(
  radius: Radius | Ball,
  norm: str | None = None,
  *,
  allowed: Sequence[str] = tuple(BALLS),
  attack: str = 'the attack',
) -> Ball:
  """Gives the ball that an attack stays in, by its radius or as it is.

  Args:
    radius: A `Ball`, or the radius of one in image units.
    norm: Norm of the ball that has this radius; None is that of the ball, or
      'linf'.
    allowed: Norms that the attack works in.
    attack: What to call it.

  Returns:
    A `Ball`.

  Raises:
    UserError: If the norm is not allowed, or the radius out of its range.
  """
  made = radius if isinstance(radius, Ball) else ball(norm or 'linf', radius)
  if norm not in (None, made.norm):
    raise UserError(
      f'norm is {norm!r} but the ball given is one in {made.norm}; leave the '
      'norm out'
    )
  if made.norm not in allowed:
    raise UserError(
      f'{attack} works in the norm {" or ".join(allowed)}, not in {made.norm}; '
      'pgd works in all of them'
    )
  return made


def usual_step(epsilon: Radius, num_steps: int) -> Radius:
  """The length of a step that suits a radius and a number of steps.

  2.5 radii in all, the rule of Madry et al.: 2/255 for a radius of 8/255 and
  ten steps.

  Args:
    epsilon: Radius of the ball, a scalar or float32[B], traced or not.
    num_steps: Number of steps, at least 1.

  Returns:
    The length, of the kind of `epsilon`.

  Raises:
    UserError: If `num_steps` is no whole number of at least 1.

  References:
    Madry et al., Towards Deep Learning Models Resistant to Adversarial
    Attacks, 2018, https://arxiv.org/abs/1706.06083, section 5.
  """
  check_whole('num_steps', num_steps, 1)
  return _PATH_FACTOR * epsilon / num_steps


def checked_step(
  step_size: Radius | None,
  epsilon: Radius,
  num_steps: int,
  name: str = 'step_size',
) -> Radius:
  """Checks steps inside a ball, and chooses their length if it is not given.

  Warns with a `DoubtWarning` where all steps together are shorter than the
  radius, so that the attack cannot use its budget.

  Args:
    step_size: Length of a step, above 0, or None for `usual_step`.
    epsilon: Radius of the ball, a scalar or float32[B], traced or not.
    num_steps: Number of steps, at least 1.
    name: What the user called the length.

  Returns:
    The length of a step.

  Raises:
    UserError: If a concrete number lies outside its range.
  """
  check_whole('num_steps', num_steps, 1)
  if step_size is None:
    return usual_step(epsilon, num_steps)
  check_range(name, step_size, 0, float('inf'), open_low=True)
  if any(isinstance(each, jax.core.Tracer) for each in (step_size, epsilon)):
    return step_size
  reach = num_steps * np.asarray(step_size, np.float64)
  share = np.min(reach / np.asarray(epsilon, np.float64))
  if share < 1 - 1e-6:  # Less only by rounding where a step is epsilon itself.
    warnings.warn(
      f'num_steps times {name} is {share:.2g} of the radius, so that the '
      f'attack cannot use all of it; leave {name} out, or take '
      f'{np.max(usual_step(epsilon, num_steps)):g}',
      DoubtWarning,
      stacklevel=3,
    )
  return step_size
