"""AutoPGD: projected gradient ascent that chooses its own step sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import losses
from jaxadv.attacks.combine import over
from jaxadv.attacks.drive import Composite
from jaxadv.attacks.rows import class_of_rank, keep_done, num_classes, spread
from jaxadv.errors import UserError
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

# Share of a step in the next iterate; the rest is the step before.
_MOMENTUM = 0.75


class APGDState(NamedTuple):
  """State of AutoPGD, one row a picture.

  Attributes:
    images: float32[B, H, W, C], the iterate, judged by the next step.
    previous: float32[B, H, W, C], the iterate before the last move.
    best: float32[B, H, W, C], the iterate of the largest loss; the start
      before any was judged.
    best_gradient: float32[B, H, W, C], the gradient there.
    best_loss: float32[B].
    checked_loss: float32[B], `best_loss` at the last checkpoint.
    last_loss: float32[B], the loss one step before.
    rises: int32[B], steps since the last checkpoint that raised the loss.
    halved: bool[B], whether the last checkpoint halved the step size.
    step_size: float32[B].
    epsilon: float32[B], radius of the ball.
    rank: int32[B], place of the target among the clean logits.
    targets: int32[B], the class of that rank.
    steps: int32[B], how many iterates were judged.
    success: bool[B].
    done: bool[B].
  """

  images: Images
  previous: jax.Array
  best: jax.Array
  best_gradient: jax.Array
  best_loss: jax.Array
  checked_loss: jax.Array
  last_loss: jax.Array
  rises: jax.Array
  halved: jax.Array
  step_size: jax.Array
  epsilon: jax.Array
  rank: jax.Array
  targets: jax.Array
  steps: jax.Array
  success: jax.Array
  done: jax.Array


def checkpoints(num_steps: int) -> np.ndarray:
  """The steps after which AutoPGD reconsiders its step size.

  Args:
    num_steps: Number of steps, at least 1.

  Returns:
    int32[num_steps + 1]: at index t the length of the window that ends with
    step t, or 0 where none ends. The first window takes 22 % of the steps,
    each further one 3 % less, but at least 6 %.
  """
  window, shrink, least = (
    max(int(share * num_steps), 1) for share in (0.22, 0.03, 0.06)
  )
  ends = np.zeros(num_steps + 1, np.int32)
  end = window
  while end <= num_steps:
    ends[end] = window
    window = max(window - shrink, least)
    end += window
  return ends


def apgd(
  ball: Ball | Radius,
  num_steps: int = 100,
  *,
  loss: str | losses.Loss = 'ce',
  rho: float = 0.75,
  random_start: bool = True,
  targeted: bool = False,
) -> Attack:
  """Climbs a loss inside a ball with step sizes that follow its progress.

  A budget attack. Steps have momentum and begin with twice the radius; at
  checkpoints a step size that no longer serves is halved, and the row goes
  back to its best iterate. A row rests as soon as it succeeds. A step costs
  one forward and one backward pass, which also judge the iterate; the attack
  takes `num_steps` + 1 of them, and one more with a random start.

  Args:
    ball: `linf_ball(epsilon)` or `l2_ball(epsilon)`; a radius alone is that of
      an Linf ball.
    num_steps: Number of steps, at least 1.
    loss: `(logits, labels) -> float32[B]`, such as `losses.cross_entropy`
      (APGD-CE) or `losses.dlr` (APGD-DLR), or its name, 'ce' or 'dlr'.
    rho: Share of the steps of a window, in [0, 1], that must raise the loss
      for the step size to stay.
    random_start: Whether to start on the surface of the ball, at random.
    targeted: Whether `labels` name the classes to reach; the loss is then
      lowered.

  Returns:
    An `Attack`. Its images stay within the ball and [0, 1]; a row that is
    misclassified when clean comes back clean, one without success holds the
    iterate of the largest loss.

  Raises:
    UserError: If a hyperparameter lies outside its range.

  Departs from the authors' code: the first step counts as a rise if it
  raises the loss of the start (section 3.1 of the paper), not if it ends
  above zero.

  References:
    Croce and Hein, Reliable evaluation of adversarial robustness with an
    ensemble of diverse parameter-free attacks, 2020,
    https://arxiv.org/abs/2003.01690, section 3, algorithm 1;
    hyperparameters of github.com/fra31/auto-attack.
  """
  sign = -1 if targeted else 1
  loss = losses.loss(loss)
  return _apgd(
    ball,
    num_steps,
    lambda logits, labels, targets: sign * loss(logits, labels),
    rho=rho,
    random_start=random_start,
    targeted=targeted,
  )


def apgd_t(
  ball: Ball | Radius,
  num_steps: int = 100,
  *,
  num_targets: int = 9,
  rho: float = 0.75,
  random_start: bool = True,
) -> Composite:
  """Runs AutoPGD towards one rival class after the other.

  A budget attack, untargeted: labels are the true classes, and any other
  class is a success. Climbs the targeted DLR loss towards the class of the
  second largest logit on the clean picture, then towards the third, and so
  on, until a run succeeds.

  Args:
    ball: `linf_ball(epsilon)` or `l2_ball(epsilon)`; a radius alone is that of
      an Linf ball.
    num_steps: Number of steps towards every class, at least 1.
    num_targets: Number of rival classes, at least 1; of a classifier with
      fewer, all are tried.
    rho: See `apgd`.
    random_start: See `apgd`.

  Returns:
    A `Composite`, compiled once for all classes.

  Raises:
    UserError: If a hyperparameter lies outside its range, or the classifier
      has fewer than 4 classes.

  References:
    Croce and Hein, 2020, https://arxiv.org/abs/2003.01690, section 4.1,
    equation 7.
  """
  check_whole('num_targets', num_targets, 1)

  def towards(rank: jax.Array) -> Attack:
    return _apgd(
      ball,
      num_steps,
      losses.targeted_dlr,
      rho=rho,
      random_start=random_start,
      rank=rank,
    )

  return over(towards, jnp.arange(1, num_targets + 1))


def _apgd(
  ball: Ball | Radius,
  num_steps: int,
  loss: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
  *,
  rho: float,
  random_start: bool,
  targeted: bool = False,
  rank: Radius | None = None,
) -> Attack:
  """AutoPGD on `loss(logits, labels, targets)`; see `apgd`."""
  check_whole('num_steps', num_steps, 1)
  check_range('rho', rho, 0, 1)
  ball = as_ball(ball, allowed=('linf', 'l2'), attack='AutoPGD')
  windows = jnp.asarray(checkpoints(num_steps))

  def init(
    keys: Keys, classifier: ClassifierLike, images: Images, labels: Labels
  ) -> APGDState:
    rows = labels.shape
    done = jnp.zeros(rows, bool)
    if rank is not None:
      classes = num_classes(classifier, images)
      if classes < 4:
        raise UserError(
          'APGD-T is impossible: the targeted DLR loss needs 4 classes and the '
          f'classifier has {classes}; use apgd with the cross-entropy or the '
          'margin, fab_t and square'
        )
      done = jnp.broadcast_to(rank >= classes, rows)
    epsilon = spread('epsilon', ball.epsilon, rows)
    start = images
    if random_start:
      # Stretched to the surface, as in the authors' code.
      noise = ball.sample(keys, images.shape, epsilon)
      longer = epsilon / jnp.maximum(ball.distance(noise), 1e-12)
      inside = ball.project(noise * per_row(longer, noise), epsilon)
      start = jnp.clip(images + inside, 0, 1)
    unknown = jnp.full(rows, -jnp.inf, jnp.float32)
    return APGDState(
      images=images,
      previous=start,
      best=start,
      best_gradient=jnp.zeros_like(images),
      best_loss=unknown,
      checked_loss=unknown,
      last_loss=unknown,
      rises=jnp.zeros(rows, jnp.int32),
      halved=jnp.ones(rows, bool),
      step_size=2 * epsilon,
      epsilon=epsilon,
      rank=jnp.broadcast_to(0 if rank is None else rank, rows),
      targets=labels,
      steps=jnp.zeros(rows, jnp.int32),
      success=jnp.zeros(rows, bool),
      done=done,
    )

  def step(
    classifier: ClassifierLike, images: Images, labels: Labels, state: APGDState
  ) -> APGDState:
    fresh = state.steps == 0

    def objective(attacked: Images) -> tuple[Any, Any]:
      logits = classifier(attacked)
      ranked = class_of_rank(logits, state.rank)
      targets = jnp.where(fresh, ranked, state.targets)
      values = loss(logits, labels, targets)
      return jnp.sum(values), (values, logits, targets)

    gradient, (values, logits, targets) = jax.grad(objective, has_aux=True)(
      state.images
    )
    success = losses.succeeded(logits, labels, targeted=targeted)

    # With a random start, the first pass only judges the clean picture.
    turn = state.steps - 1 if random_start else state.steps
    counts = turn >= 0
    better = counts & (values > state.best_loss)
    best_loss = jnp.where(better, values, state.best_loss)
    best = jnp.where(per_row(better, images), state.images, state.best)
    best_gradient = jnp.where(
      per_row(better, images), gradient, state.best_gradient
    )
    rises = state.rises + ((turn > 0) & (values > state.last_loss))
    checked_loss = jnp.where(turn == 0, best_loss, state.checked_loss)

    window = windows[jnp.clip(turn, 0)]
    at_checkpoint = counts & (window > 0)
    few_rises = rises <= rho * window
    no_gain = ~state.halved & (checked_loss >= best_loss)
    halve = at_checkpoint & (few_rises | no_gain)
    step_size = jnp.where(halve, state.step_size / 2, state.step_size)
    here = jnp.where(per_row(halve | ~counts, images), best, state.images)
    uphill = jnp.where(per_row(halve, images), best_gradient, gradient)

    def inside(moved: Images) -> Images:
      delta = ball.project(moved - images, state.epsilon)
      return jnp.clip(images + delta, 0, 1)

    ahead = inside(here + per_row(step_size, images) * ball.steepest(uphill))
    share = per_row(jnp.where(turn > 0, _MOMENTUM, 1.0), images)
    before = here - state.previous
    moved = inside(here + share * (ahead - here) + (1 - share) * before)
    moved = jnp.where(per_row(counts, images), moved, here)

    new = APGDState(
      images=jnp.where(per_row(success, images), state.images, moved),
      previous=here,
      best=best,
      best_gradient=best_gradient,
      best_loss=best_loss,
      checked_loss=jnp.where(at_checkpoint, best_loss, checked_loss),
      last_loss=values,
      rises=jnp.where(at_checkpoint, 0, rises),
      halved=jnp.where(at_checkpoint, halve, state.halved),
      step_size=step_size,
      epsilon=state.epsilon,
      rank=state.rank,
      targets=targets,
      steps=state.steps + 1,
      success=success,
      done=success,
    )
    return keep_done(state, new)

  def finish(
    classifier: ClassifierLike, images: Images, labels: Labels, state: APGDState
  ) -> AttackResult:
    del classifier, labels  # Each step judged its iterate.
    # A row that is left out or has no such target was never judged.
    judged = per_row(state.steps > 0, images)
    left = jnp.where(judged, state.best, images)
    result = jnp.where(per_row(state.success, images), state.images, left)
    return AttackResult(result, state.success)

  return Attack(
    init, step, finish, num_steps + 1 + random_start, targeted=targeted
  )
