"""FAB: the fast adaptive boundary attack, towards one class at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import norms
from jaxadv.attacks.combine import over
from jaxadv.attacks.drive import Composite
from jaxadv.attacks.rows import class_of_rank, keep_done, num_classes, spread
from jaxadv.errors import UserError
from jaxadv.losses import logit_of, succeeded
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

_DISTANCES: dict[str, Callable[[jax.Array], jax.Array]] = {
  'linf': norms.linf,
  'l2': norms.l2,
}


class FABState(NamedTuple):
  """State of FAB, one row a picture.

  Attributes:
    images: float32[B, H, W, C], the iterate.
    best: float32[B, H, W, C], the nearest success, or the clean picture.
    best_size: float32[B], the norm of its change; infinite before a success.
    epsilon: float32[B], the norm at which a row rests.
    rank: int32[B], place of the target among the clean logits.
    own: int32[B], the class to leave.
    targets: int32[B], the class to approach.
    fresh: bool[B], whether the iterate is the clean picture, not yet judged.
    done: bool[B].
  """

  images: Images
  best: jax.Array
  best_size: jax.Array
  epsilon: jax.Array
  rank: jax.Array
  own: jax.Array
  targets: jax.Array
  fresh: jax.Array
  done: jax.Array


def to_hyperplane(
  points: jax.Array, normal: jax.Array, gap: jax.Array, norm: str
) -> jax.Array:
  """Smallest change that takes points in the box onto a hyperplane.

  Every entry moves against the sign of gap times normal, in L2 in proportion
  to the normal, in Linf all by the same, until it meets the box. How far is
  found by Newton's method: the gap as a function of that length is concave
  and piecewise linear, so it approaches from below and ends exactly, after a
  handful of steps, where sorting the entries would cost as much as a small
  network.

  Args:
    points: float32[B, ...] in [0, 1].
    normal: float32[B, ...].
    gap: float32[B], the signed value at the points of the linear function
      whose zeros are the hyperplane.
    norm: 'linf' or 'l2'.

  Returns:
    float32[B, ...]; `points` plus it lie in the box. Where the box does not
    reach the hyperplane, the change to the nearest corner.
  """
  largest = norms.linf(normal)
  largest = jnp.where(largest > 0, largest, 1)
  weight = jnp.abs(normal) / per_row(largest, normal)
  goal = jnp.abs(gap) / largest
  direction = -jnp.sign(normal) * per_row(jnp.where(gap >= 0, 1, -1), normal)
  room = jnp.where(direction > 0, 1 - points, points)
  speed = weight if norm == 'l2' else jnp.ones_like(weight)

  def onwards(carry: Any) -> Any:
    length, _ = carry
    free = per_row(length, room) * speed < room
    reached = norms.total(jnp.where(free, 0, weight * room))
    slope = norms.total(jnp.where(free, weight * speed, 0))
    longer = (goal - reached) / jnp.where(slope > 0, slope, 1)
    moves = (slope > 0) & (longer > length)
    return jnp.where(moves, longer, length), jnp.any(moves)

  start = jnp.zeros_like(goal), jnp.array(True)
  length, _ = jax.lax.while_loop(lambda carry: carry[1], onwards, start)
  return direction * jnp.minimum(per_row(length, room) * speed, room)


def fab(
  norm: str = 'linf',
  num_steps: int = 100,
  *,
  target_rank: int | jax.Array = 1,
  targeted: bool = False,
  epsilon: Radius | Ball | None = None,
  alpha_max: float = 0.1,
  eta: float = 1.05,
  beta: float = 0.9,
) -> Attack:
  """Follows the boundary between two classes to its point next to a picture.

  Each step linearises the boundary between the label and one other class,
  projects both the iterate and the clean picture onto it, inside the box, and
  goes to a mean of the two; an iterate that succeeds steps back towards the
  clean picture. A step costs a forward and a backward pass, and a forward
  pass to judge.

  Args:
    norm: 'linf' or 'l2', the norm to keep small.
    num_steps: Number of steps, at least 1.
    target_rank: Which other class: that with the largest logit on the clean
      picture after this many others, at least 1; may be traced. Any other
      class is a success. A row with fewer classes is left clean.
    targeted: Whether `labels` name the classes to reach, whatever their
      rank; the class to leave is the predicted one.
    epsilon: None for a minimal-norm attack. A radius in image units (a
      scalar or float32[B], traced or not) or a ball in `norm` for a budget
      attack: a success counts within it, and the row then rests.
    alpha_max: Largest weight of the clean picture in the mean, in [0, 1].
    eta: By which factor projections are overshot, at least 1.
    beta: Which share of its change a success keeps, in (0, 1].

  Returns:
    An `Attack`. A row without success holds the clean picture.

  Raises:
    UserError: If a hyperparameter is unknown or lies outside its range.

  Departs from the paper as AutoAttack's FAB-T does: looks at one boundary
  instead of all, and leaves out the final search on a line. Projects without
  sorting, see `to_hyperplane`.

  References:
    Croce and Hein, Minimally distorted Adversarial Examples with a Fast
    Adaptive Boundary Attack, 2020, https://arxiv.org/abs/1907.02044, section
    2.3, algorithm 1; hyperparameters of github.com/fra31/auto-attack.
  """
  if norm not in _DISTANCES:
    raise UserError(f'norm is {norm!r} but must be one of linf, l2')
  check_whole('num_steps', num_steps, 1)
  check_range('target_rank', target_rank, 1, float('inf'))
  check_range('alpha_max', alpha_max, 0, 1)
  check_range('eta', eta, 1, float('inf'))
  check_range('beta', beta, 0, 1, open_low=True)
  distance = _DISTANCES[norm]
  # Nothing is small enough to rest at where the smallest is asked for.
  enough = -1.0 if epsilon is None else as_ball(epsilon, norm).epsilon

  def init(
    keys: Keys, classifier: ClassifierLike, images: Images, labels: Labels
  ) -> FABState:
    del keys  # Deterministic.
    rows = labels.shape
    missing = target_rank >= num_classes(classifier, images)
    return FABState(
      images=images,
      best=images,
      best_size=jnp.full(rows, jnp.inf, jnp.float32),
      epsilon=spread('epsilon', enough, rows),
      rank=jnp.broadcast_to(target_rank, rows),
      own=labels,
      targets=labels,
      fresh=jnp.ones(rows, bool),
      done=jnp.broadcast_to(missing & (not targeted), rows),
    )

  def step(
    classifier: ClassifierLike, images: Images, labels: Labels, state: FABState
  ) -> FABState:
    def ahead(attacked: Images) -> tuple[Any, Any]:
      logits = classifier(attacked)
      predicted = jnp.argmax(logits, axis=-1)
      ranked = class_of_rank(logits, state.rank)
      own, targets = (predicted, labels) if targeted else (labels, ranked)
      own = jnp.where(state.fresh, own, state.own)
      targets = jnp.where(state.fresh, targets, state.targets)
      gap = logit_of(logits, targets) - logit_of(logits, own)
      return jnp.sum(gap), (gap, logits, own, targets)

    normal, (gap, logits, own, targets) = jax.grad(ahead, has_aux=True)(
      state.images
    )
    # The first pass also judges the clean picture.
    wrong = state.fresh & succeeded(logits, labels, targeted=targeted)

    clean_gap = gap + norms.total(normal * (images - state.images))
    move = to_hyperplane(state.images, normal, gap, norm)
    clean_move = to_hyperplane(images, normal, clean_gap, norm)
    size = jnp.maximum(distance(move), 1e-8)
    clean_size = jnp.maximum(distance(clean_move), 1e-8)
    alpha = jnp.minimum(size / (size + clean_size), alpha_max)
    alpha = per_row(alpha, images)
    mean = (1 - alpha) * (state.images + eta * move) + alpha * (
      images + eta * clean_move
    )
    moved = jnp.clip(mean, 0, 1)

    success = succeeded(classifier(moved), labels, targeted=targeted)
    moved_size = distance(moved - images)
    nearer = ~wrong & success & (moved_size < state.best_size)
    best_size = jnp.where(nearer, moved_size, state.best_size)
    best_size = jnp.where(wrong, 0, best_size)
    back = images + beta * (moved - images)
    new = FABState(
      images=jnp.where(per_row(success, images), back, moved),
      best=jnp.where(per_row(nearer, images), moved, state.best),
      best_size=best_size,
      epsilon=state.epsilon,
      rank=state.rank,
      own=own,
      targets=targets,
      fresh=jnp.zeros_like(state.fresh),
      done=wrong | (best_size <= state.epsilon),
    )
    return keep_done(state, new)

  def finish(
    classifier: ClassifierLike, images: Images, labels: Labels, state: FABState
  ) -> AttackResult:
    del classifier, labels  # Each step judged its own result.
    limit = jnp.inf if epsilon is None else state.epsilon
    success = jnp.isfinite(state.best_size) & (state.best_size <= limit)
    result = jnp.where(per_row(success, images), state.best, images)
    return AttackResult(result, success)

  return Attack(init, step, finish, max_steps=num_steps, targeted=targeted)


def fab_t(
  norm: str = 'linf',
  num_steps: int = 100,
  *,
  num_targets: int = 9,
  epsilon: Radius | Ball | None = None,
  alpha_max: float = 0.1,
  eta: float = 1.05,
  beta: float = 0.9,
) -> Composite:
  """Runs FAB towards one rival class after the other.

  Untargeted: labels are the true classes, and any other class is a success.

  Args:
    norm: 'linf' or 'l2'.
    num_steps: Number of steps towards every class, at least 1.
    num_targets: Number of rival classes, at least 1: those with the largest
      logits on the clean picture; of a classifier with fewer, all are tried.
    epsilon: None for a minimal-norm attack, which keeps the smallest success
      of all runs; a radius or a ball for a budget attack, in which a row
      rests after its first success within it.
    alpha_max: See `fab`.
    eta: See `fab`.
    beta: See `fab`.

  Returns:
    A `Composite`, compiled once for all classes. A row without success holds
    the clean picture.

  Raises:
    UserError: If a hyperparameter is unknown or lies outside its range.

  References:
    Croce and Hein, 2020, https://arxiv.org/abs/2003.01690, section 5: FAB-T.
  """
  check_whole('num_targets', num_targets, 1)

  def towards(rank: jax.Array) -> Attack:
    return fab(
      norm,
      num_steps,
      target_rank=rank,
      epsilon=epsilon,
      alpha_max=alpha_max,
      eta=eta,
      beta=beta,
    )

  smallest = _DISTANCES.get(norm) if epsilon is None else None
  return over(towards, jnp.arange(1, num_targets + 1), smallest=smallest)
