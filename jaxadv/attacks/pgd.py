"""Projected gradient descent in a ball, and FGSM and BIM as cases of it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import losses
from jaxadv.attacks.rows import spread
from jaxadv.norms import (
  Ball,
  Radius,
  as_ball,
  checked_step,
  per_row,
  without_blocked,
)
from jaxadv.types import (
  Attack,
  AttackResult,
  ClassifierLike,
  Images,
  Keys,
  Labels,
)


class PGDState(NamedTuple):
  """State of PGD, one row a picture.

  Attributes:
    images: float32[B, H, W, C], the iterate.
    epsilon: float32[B], radius of the ball.
    step_size: float32[B].
    fresh: bool[B], whether the iterate is the clean picture, not yet judged.
    done: bool[B].
  """

  images: Images
  epsilon: jax.Array
  step_size: jax.Array
  fresh: jax.Array
  done: jax.Array


def pgd(
  ball: Ball | Radius,
  step_size: Radius | None = None,
  num_steps: int = 10,
  *,
  random_start: bool = True,
  targeted: bool = False,
  early_stop: bool = False,
  loss: str | losses.Loss = 'ce',
) -> Attack:
  """Climbs the loss inside a ball around the clean picture.

  A budget attack: each step moves by `step_size` along the direction in which
  the loss rises fastest in the ball's norm, then projects onto the ball and
  clips to [0, 1]. A step costs one forward and one backward pass; judging the
  result costs one more forward pass, a random start another.

  Args:
    ball: `linf_ball(epsilon)`, `l2_ball(epsilon)` or `l1_ball(epsilon)`; a
      radius alone is that of an Linf ball.
    step_size: Length of a step in image units and in the ball's norm, above
      0; a scalar or float32[B], traced or not. None follows the radius and
      the number of steps, see `norms.usual_step`.
    num_steps: Number of steps, at least 1.
    random_start: Whether to start at a uniform draw from the ball.
    targeted: Whether `labels` name the classes to reach; the loss is then
      lowered.
    early_stop: Whether a row rests as soon as it succeeds. If not, rows keep
      climbing, and one that succeeded may in theory lose it again.
    loss: `(logits, labels) -> float32[B]`, such as those of `jaxadv.losses`, or
      the name of one, see `losses.loss`.

  Returns:
    An `Attack`. Its images stay within the ball and [0, 1]; a row that is
    misclassified when clean comes back clean.

  Raises:
    UserError: If a hyperparameter lies outside its range.

  Example:
    >>> attack = pgd(linf_ball(8 / 255), step_size=2 / 255, num_steps=10)
    >>> attacked, success = attack(keys, classifier, images, labels)

  References:
    Madry et al., Towards Deep Learning Models Resistant to Adversarial
    Attacks, 2018, https://arxiv.org/abs/1706.06083, section 2.1. In L1:
    Tramer and Boneh, Adversarial Training and Robustness for Multiple
    Perturbations, 2019, https://arxiv.org/abs/1904.13000, section 4.
  """
  ball, loss = as_ball(ball), losses.loss(loss)
  step_size = checked_step(step_size, ball.epsilon, num_steps)

  def judge(
    classifier: ClassifierLike, images: Images, labels: Labels
  ) -> jax.Array:
    return losses.succeeded(classifier(images), labels, targeted=targeted)

  def init(
    keys: Keys, classifier: ClassifierLike, images: Images, labels: Labels
  ) -> PGDState:
    rows = labels.shape
    epsilon = spread('epsilon', ball.epsilon, rows)
    start, done = images, jnp.zeros(rows, bool)
    if random_start:
      done = judge(classifier, images, labels)
      noise = ball.sample(keys, images.shape, epsilon)
      moved = jnp.clip(images + noise, 0, 1)
      start = jnp.where(per_row(done, images), images, moved)
    return PGDState(
      images=start,
      epsilon=epsilon,
      step_size=spread('step_size', step_size, rows),
      fresh=jnp.full(rows, not random_start),
      done=done,
    )

  def step(
    classifier: ClassifierLike, images: Images, labels: Labels, state: PGDState
  ) -> PGDState:
    def total(attacked: Images) -> tuple[jax.Array, jax.Array]:
      logits = classifier(attacked)
      return jnp.sum(loss(logits, labels)), logits

    gradient, logits = jax.grad(total, has_aux=True)(state.images)
    # The logits of this pass also tell which rows may rest: the clean ones
    # on the first step, and all of them if rows stop early.
    success = losses.succeeded(logits, labels, targeted=targeted)
    done = state.done | (success & (state.fresh | early_stop))
    direction = -gradient if targeted else gradient
    if ball.norm == 'l1':
      # The few channels of a step should be such as can still move.
      direction = without_blocked(direction, state.images)
    move = per_row(state.step_size, images) * ball.steepest(direction)
    delta = state.images + move - images
    moved = jnp.clip(images + ball.project(delta, state.epsilon), 0, 1)
    return state._replace(
      images=jnp.where(per_row(done, images), state.images, moved),
      fresh=jnp.zeros_like(done),
      done=done,
    )

  def finish(
    classifier: ClassifierLike, images: Images, labels: Labels, state: PGDState
  ) -> AttackResult:
    return AttackResult(state.images, judge(classifier, state.images, labels))

  return Attack(init, step, finish, num_steps, targeted)


def fgsm(epsilon: Radius | Ball, *, targeted: bool = False) -> Attack:
  """Moves every pixel by epsilon along the sign of the loss gradient.

  A budget attack of one step. The loss is the cross-entropy: raised for the
  true label, or lowered for the label to reach.

  Args:
    epsilon: Radius of the Linf ball in image units, in (0, 1]; 8/255 is eight
      grey levels. A scalar or float32[B], traced or not, or `linf_ball(...)`.
    targeted: Whether `labels` name the classes to reach.

  Returns:
    An `Attack`. Its images differ from the clean ones by at most `epsilon`.

  Raises:
    UserError: If a concrete epsilon lies outside (0, 1], or a ball is one in
      another norm.

  Departs from the paper: images are clipped to [0, 1] after the step, and
  those misclassified when clean come back clean.

  Example:
    >>> attacked, success = fgsm(8 / 255)(keys, classifier, images, labels)

  References:
    Goodfellow et al., Explaining and Harnessing Adversarial Examples, 2015,
    https://arxiv.org/abs/1412.6572, section 4.
  """
  ball = as_ball(epsilon, allowed=('linf',), attack='fgsm')
  return bim(ball, ball.epsilon, 1, targeted=targeted)


def bim(
  ball: Ball | Radius,
  step_size: Radius | None = None,
  num_steps: int = 10,
  *,
  targeted: bool = False,
) -> Attack:
  """Repeats the gradient step from the clean picture: PGD without the draw.

  Args:
    ball: `linf_ball(epsilon)`, as in the paper, or that of another norm; a
      radius alone is that of an Linf ball.
    step_size: Length of a step, see `pgd`.
    num_steps: Number of steps, at least 1.
    targeted: Whether `labels` name the classes to reach.

  Returns:
    An `Attack`. Its images stay within the ball and [0, 1].

  Raises:
    UserError: If a hyperparameter lies outside its range.

  References:
    Kurakin et al., Adversarial Examples in the Physical World, 2017,
    https://arxiv.org/abs/1607.02533, section 2.2.
  """
  return pgd(ball, step_size, num_steps, random_start=False, targeted=targeted)
