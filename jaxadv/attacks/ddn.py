"""DDN: the direction by gradient steps, the length by a rule of its own."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.attacks.rows import keep_done, spread
from jaxadv.losses import cross_entropy, succeeded
from jaxadv.norms import Radius, l2, per_row, unit_l2
from jaxadv.types import (
  Attack,
  AttackResult,
  ClassifierLike,
  Images,
  Keys,
  Labels,
)
from jaxadv.utils import check_range, check_whole

_FIRST_STEP, _LAST_STEP = 1.0, 0.01  # Step sizes of Rony et al.


class DDNState(NamedTuple):
  """State of DDN, one row a picture.

  Attributes:
    images: float32[B, H, W, C], the iterate.
    best: float32[B, H, W, C], the nearest success so far, else clean.
    distance: float32[B], L2 distance of `best`, infinity without success.
    norm: float32[B], the length that the change is given.
    farthest: float32[B], the largest length that [0, 1] has room for.
    gamma: float32[B].
    keys: key[B].
    steps: int32[B], the number of steps so far.
    done: bool[B].
  """

  images: Images
  best: jax.Array
  distance: jax.Array
  norm: jax.Array
  farthest: jax.Array
  gamma: jax.Array
  keys: Keys
  steps: jax.Array
  done: jax.Array


def ddn(
  num_steps: int = 100,
  *,
  init_norm: Radius = 1.0,
  gamma: Radius = 0.05,
  levels: int | None = 256,
  targeted: bool = False,
) -> Attack:
  """Finds a small L2 change by decoupling its direction from its norm.

  A minimal-norm attack. Each step adds a piece of the normalised gradient of
  the cross-entropy, then sets the length of the change: a little shorter where
  the picture is a success, else a little longer. A step costs one forward and
  one backward pass, and judges the very picture that it evaluates.

  Args:
    num_steps: Number of steps, at least 1. Their size falls from 1 to 0.01 on
      a cosine.
    init_norm: Length of the first change in image units, above 0; a scalar or
      float32[B], traced or not.
    gamma: Share by which the length changes in a step, in [0, 1]; a scalar or
      float32[B], traced or not.
    levels: Number of values that a pixel can take, at least 2, so that
      nothing is lost where results are saved with 8 bits (256); None for any
      value.
    targeted: Whether `labels` name the classes to reach.

  Returns:
    An `Attack`. A row without success holds the clean picture, which is not
    rounded.

  Raises:
    UserError: If a hyperparameter lies outside its range.

  Departs from the paper: a row misclassified when clean is done at once. Where
  the gradient vanishes, the direction is drawn from the row's key, and is
  normalised like a gradient.

  References:
    Rony et al., Decoupling Direction and Norm for Efficient Gradient-Based L2
    Adversarial Attacks and Defenses, 2019, https://arxiv.org/abs/1811.09600,
    algorithm 1.
  """
  check_whole('num_steps', num_steps, 1)
  check_range('init_norm', init_norm, 0, float('inf'), open_low=True)
  check_range('gamma', gamma, 0, 1)
  if levels is not None:
    check_whole('levels', levels, 2)
  turn = np.cos(np.pi * np.arange(num_steps) / num_steps)
  step_sizes = _LAST_STEP + (_FIRST_STEP - _LAST_STEP) * (1 + turn) / 2

  def init(
    keys: Keys, classifier: ClassifierLike, images: Images, labels: Labels
  ) -> DDNState:
    del classifier  # The first step judges the clean pictures.
    rows = labels.shape
    return DDNState(
      images=images,
      best=images,
      distance=jnp.full(rows, jnp.inf, jnp.float32),
      norm=spread('init_norm', init_norm, rows),
      farthest=l2(jnp.maximum(images, 1 - images)),
      gamma=spread('gamma', gamma, rows),
      keys=keys,
      steps=jnp.zeros(rows, jnp.int32),
      done=jnp.zeros(rows, bool),
    )

  def step(
    classifier: ClassifierLike, images: Images, labels: Labels, state: DDNState
  ) -> DDNState:
    def total(attacked: Images) -> tuple[jax.Array, jax.Array]:
      logits = classifier(attacked)
      sign = -1 if targeted else 1
      hit = succeeded(logits, labels, targeted=targeted)
      return sign * jnp.sum(cross_entropy(logits, labels)), hit

    gradient, hit = jax.grad(total, has_aux=True)(state.images)
    delta = state.images - images
    distance = l2(delta)
    better = hit & (distance < state.distance)

    direction = _somewhere(unit_l2(gradient), state.keys, state.steps)
    step_size = jnp.asarray(step_sizes, jnp.float32)[state.steps]
    delta += per_row(step_size, delta) * direction
    change = jnp.where(hit, 1 - state.gamma, 1 + state.gamma)
    norm = jnp.minimum(state.norm * change, state.farthest)
    scale = norm / jnp.maximum(l2(delta), 1e-12)
    moved = jnp.clip(images + per_row(scale, delta) * delta, 0, 1)
    if levels is not None:
      moved = jnp.round(moved * (levels - 1)) * np.float32(1 / (levels - 1))

    new = state._replace(
      images=moved,
      best=jnp.where(per_row(better, images), state.images, state.best),
      distance=jnp.where(better, distance, state.distance),
      norm=norm,
      steps=state.steps + 1,
      done=hit & (state.steps == 0),
    )
    return keep_done(state, new)

  def finish(
    classifier: ClassifierLike, images: Images, labels: Labels, state: DDNState
  ) -> AttackResult:
    del classifier, images, labels  # Each step judged its own picture.
    return AttackResult(state.best, jnp.isfinite(state.distance))

  return Attack(init, step, finish, num_steps, targeted=targeted)


def _somewhere(direction: jax.Array, keys: Keys, count: jax.Array) -> jax.Array:
  """Replaces directions that are zero by random ones of length one."""
  vanished = ~jnp.any(direction != 0, axis=range(1, direction.ndim))

  def draw(key: jax.Array, count: jax.Array) -> jax.Array:
    key = jax.random.fold_in(key, count)
    return jax.random.normal(key, direction.shape[1:], jnp.float32)

  def replaced() -> jax.Array:
    random = unit_l2(jax.vmap(draw)(keys, count))
    return jnp.where(per_row(vanished, random), random, direction)

  # Draws cost a good part of a gradient, and are hardly ever needed.
  return jax.lax.cond(jnp.any(vanished), replaced, lambda: direction)
