"""Square Attack: random search that needs no gradient."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import losses, norms
from jaxadv.attacks.rows import keep_done, spread
from jaxadv.norms import Ball, Radius, as_ball, per_row
from jaxadv.types import (
  Attack,
  AttackResult,
  ClassifierLike,
  Images,
  Keys,
  Labels,
)
from jaxadv.utils import check_range, check_whole

# After these numbers of queries the squares cover half as much.
_SHRINKS = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])


class SquareState(NamedTuple):
  """State of Square Attack, one row a picture.

  Attributes:
    images: float32[B, H, W, C], the best point; at first the clean picture.
    margin: float32[B], by how much it succeeds; raised by the attack.
    keys: key[B].
    epsilon: float32[B], radius of the ball.
    steps: int32[B], how many points were judged.
    success: bool[B].
    done: bool[B], the same; a row rests as soon as it succeeds.
  """

  images: Images
  margin: jax.Array
  keys: Keys
  epsilon: jax.Array
  steps: jax.Array
  success: jax.Array
  done: jax.Array


def halvings(query: jax.Array) -> jax.Array:
  """How often the share of a square was halved before a query, int32."""
  return jnp.searchsorted(jnp.asarray(_SHRINKS), query)


def square(
  ball: Ball | Radius,
  num_queries: int = 5000,
  *,
  p_init: float = 0.8,
  targeted: bool = False,
) -> Attack:
  """Changes one random square at a time and keeps what raises the margin.

  A budget attack that only looks at logits: a check on defences that hide
  their gradients. Starts with stripes (Linf) or a grid of bumps (L2) on the
  surface of the ball. A query costs one forward pass; the clean picture and
  the start take one each. A row rests as soon as it succeeds.

  Args:
    ball: `linf_ball(epsilon)` or `l2_ball(epsilon)`; a radius alone is that of
      an Linf ball.
    num_queries: Number of squares tried, at least 1.
    p_init: Share of the picture that the first squares cover, in (0, 1]. It
      is halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000
      queries, whatever `num_queries`.
    targeted: Whether `labels` name the classes to reach.

  Returns:
    An `Attack`. Its images stay within the ball and [0, 1]; a row that is
    misclassified when clean comes back clean, one without success holds the
    point of the largest margin.

  Raises:
    UserError: If a hyperparameter lies outside its range.

  Departs from the authors' code: each picture has squares of its own, and a
  square may touch the last row and column (as in algorithms 2 and 3 of the
  paper).

  References:
    Andriushchenko et al., Square Attack, 2020,
    https://arxiv.org/abs/1912.00049, algorithms 1 to 3; schedule and p_init
    of github.com/fra31/auto-attack.
  """
  check_whole('num_queries', num_queries, 1)
  check_range('p_init', p_init, 0, 1, open_low=True)
  ball = as_ball(ball, allowed=('linf', 'l2'), attack='Square Attack')
  start, propose = (
    (_stripes, _flip_square)
    if ball.norm == 'linf'
    else (_grid_of_bumps, _move_mass)
  )

  def init(
    keys: Keys, classifier: ClassifierLike, images: Images, labels: Labels
  ) -> SquareState:
    del classifier
    rows = labels.shape
    return SquareState(
      images=images,
      margin=jnp.full(rows, -jnp.inf, jnp.float32),
      keys=keys,
      epsilon=spread('epsilon', ball.epsilon, rows),
      steps=jnp.zeros(rows, jnp.int32),
      success=jnp.zeros(rows, bool),
      done=jnp.zeros(rows, bool),
    )

  def step(
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    state: SquareState,
  ) -> SquareState:
    # The first pass judges the clean picture, the second one the start.
    keys = jax.vmap(jax.random.fold_in)(state.keys, state.steps)
    sides = _sides(ball.norm, p_init, images.shape)
    size = halvings(jnp.maximum(state.steps - 2, 0))
    delta = propose(keys, state.images - images, state.epsilon, sides, size)
    delta = jnp.where(
      per_row(state.steps == 1, images),
      start(keys, images.shape, state.epsilon),
      delta,
    )
    delta = jnp.where(per_row(state.steps == 0, images), 0, delta)
    tried = jnp.clip(images + ball.project(delta, state.epsilon), 0, 1)

    logits = classifier(tried)
    success = losses.succeeded(logits, labels, targeted=targeted)
    sign = -1 if targeted else 1
    margin = sign * losses.margin(logits, labels)
    # The start replaces the clean picture even if that was better.
    better = success | (margin > state.margin) | (state.steps == 1)
    new = SquareState(
      images=jnp.where(per_row(better, images), tried, state.images),
      margin=jnp.where(better, margin, state.margin),
      keys=state.keys,
      epsilon=state.epsilon,
      steps=state.steps + 1,
      success=success,
      done=success,
    )
    return keep_done(state, new)

  def finish(
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    state: SquareState,
  ) -> AttackResult:
    del classifier, images, labels  # Each step judged its own point.
    return AttackResult(state.images, state.success)

  return Attack(init, step, finish, num_queries + 2, targeted=targeted)


def _sides(norm: str, p_init: float, shape: tuple[int, ...]) -> np.ndarray:
  """Side of a square after every number of halvings, in pixels.

  In L2 it is odd and at least 3.
  """
  _, height, width, _ = shape
  shares = p_init / 2.0 ** np.arange(len(_SHRINKS) + 1)
  sides = np.round(np.sqrt(shares * height * width)).astype(np.int32)
  if norm == 'l2':
    sides = np.maximum(sides, 3)
    sides += sides % 2 == 0
  return np.clip(sides, 1, min(height, width))


def _uniform(keys: Keys, shape: tuple[int, ...]) -> jax.Array:
  """Draws in [0, 1) for every row, float32[B, *shape].

  All draws of a step come from one call: each call of the generator takes
  long to compile.
  """
  draw = lambda key: jax.random.uniform(key, shape, jnp.float32)
  return jax.vmap(draw)(keys)


def _signs(uniform: jax.Array) -> jax.Array:
  return jnp.where(uniform < 0.5, -1.0, 1.0)


def _stripes(
  keys: Keys, shape: tuple[int, ...], epsilon: jax.Array
) -> jax.Array:
  """Vertical stripes, one pixel wide, of random sign in each channel."""
  stripes = _signs(_uniform(keys, (1, *shape[2:])))
  return jnp.broadcast_to(stripes, shape) * per_row(epsilon, stripes)


def _offsets(
  uniform: jax.Array, side: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Places a square anywhere in the picture.

  Args:
    uniform: float32[B, 2], draws in [0, 1).
    side: int32[B], side of the square.
    shape: That of the pictures.

  Returns:
    Rows and columns of all pixels, counted from the top left pixel of the
    square, int32[B, H, W] each, and whether they lie inside, bool[B, H, W, 1].
  """
  _, height, width, _ = shape
  free = jnp.array([height, width]) - side[:, None] + 1
  corner = jnp.floor(uniform * free).astype(jnp.int32)[:, :, None, None]
  down = jnp.arange(height)[:, None] - corner[:, 0]
  across = jnp.arange(width) - corner[:, 1]
  down, across = jnp.broadcast_arrays(down, across)
  side = side[:, None, None]
  inside = (down >= 0) & (down < side) & (across >= 0) & (across < side)
  return down, across, inside[..., None]


def _flip_square(
  keys: Keys,
  delta: jax.Array,
  epsilon: jax.Array,
  sides: np.ndarray,
  size: jax.Array,
) -> jax.Array:
  """Linf: moves a square of side sides[size] up or down in each channel."""
  side = jnp.asarray(sides)[size]
  draws = _uniform(keys, (2 + delta.shape[-1],))
  _, _, window = _offsets(draws[:, :2], side, delta.shape)
  signs = _signs(draws[:, None, None, 2:])
  return jnp.where(window, signs * per_row(epsilon, delta), delta)


def _bump(side: int) -> np.ndarray:
  """Two hills, the upper one upwards and the lower one downwards.

  Each falls off in square rings around its middle; see equation 2 of the
  paper.

  Args:
    side: Height and width in pixels.

  Returns:
    float32[side, side], of length one, of which both hills have the same
    share.
  """

  def hill(height: int) -> np.ndarray:
    down, across = np.mgrid[:height, :side]
    ring = np.maximum(np.abs(down - height // 2), np.abs(across - side // 2))
    # A pixel of ring r has the terms r + 1 to n of the sum of 1 / k^2.
    terms = 1 / np.arange(1, side // 2 + 2) ** 2
    sums = np.cumsum(terms[::-1])[::-1]
    return sums[ring] / max(np.linalg.norm(sums[ring]), 1e-12)

  half = side // 2
  bump = np.concatenate([hill(half), -hill(side - half)])
  return (bump / np.linalg.norm(bump)).astype(np.float32)


def _grid_of_bumps(
  keys: Keys, shape: tuple[int, ...], epsilon: jax.Array
) -> jax.Array:
  """A grid of about five by five bumps that share the length epsilon."""
  batch, height, width, channels = shape
  side = max(min(height, width) // 5, 1)
  rows, columns = height // side, width // side
  upright = jnp.asarray(_bump(side))

  draws = _uniform(keys, (rows, columns, 1, 1, 1 + channels))
  turned = draws[..., :1] < 0.5
  bumps = jnp.where(turned, upright.T[..., None], upright[..., None])
  bumps *= _signs(draws[..., 1:])
  # From rows and columns of the grid and of a bump to those of a picture.
  picture = bumps.transpose(0, 1, 3, 2, 4, 5).reshape(
    batch, rows * side, columns * side, channels
  )
  left_over = [
    (rest // 2, rest - rest // 2) for rest in (height % side, width % side)
  ]
  picture = jnp.pad(picture, [(0, 0), *left_over, (0, 0)])
  return norms.unit_l2(picture) * per_row(epsilon, picture)


def _move_mass(
  keys: Keys,
  delta: jax.Array,
  epsilon: jax.Array,
  sides: np.ndarray,
  size: jax.Array,
) -> jax.Array:
  """L2: empties one square into another, which gets a bump added.

  Both have the side sides[size].
  """
  batch, height, width, channels = delta.shape
  side = jnp.asarray(sides)[size]
  draws = _uniform(keys, (5 + channels,))
  down, across, filled = _offsets(draws[:, :2], side, delta.shape)
  _, _, emptied = _offsets(draws[:, 2:4], side, delta.shape)
  turned = draws[:, 4, None, None] < 0.5
  bumps = np.zeros((len(sides), max(sides), max(sides)), np.float32)
  for bump, length in zip(bumps, sides, strict=True):
    bump[:length, :length] = _bump(length)
  # Pixels outside of the square read anything; they are not filled.
  bump = jnp.asarray(bumps)[
    size[:, None, None],
    jnp.where(turned, across, down),
    jnp.where(turned, down, across),
  ]
  signs = _signs(draws[:, None, None, 5:])

  def squares(values: jax.Array) -> jax.Array:
    """Sum of the squares of every channel, float32[B, 1, 1, C]."""
    planes = values.transpose(0, 3, 1, 2).reshape(-1, height * width)
    return norms.total(planes**2).reshape(batch, 1, 1, channels)

  unit = lambda values: values / (jnp.sqrt(squares(values)) + 1e-12)
  used = norms.l2(delta)
  # As a product: a difference of squares would round with the context.
  unused = jnp.maximum((epsilon - used) * (epsilon + used), 0) / channels
  moved = squares(jnp.where(filled | emptied, delta, 0))
  new = bump[..., None] * signs + unit(jnp.where(filled, delta, 0))
  new = unit(jnp.where(filled, new, 0))
  new *= jnp.sqrt(per_row(unused, delta) + moved)
  changed = jnp.where(filled, new, jnp.where(emptied, 0, delta))
  return norms.unit_l2(changed) * per_row(epsilon, delta)
