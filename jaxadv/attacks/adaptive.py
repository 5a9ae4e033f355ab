"""Attacks by someone who knows the detector or the defence.

A detector is a score, a callable `images -> float32[B]` that is positive
where it takes a picture for attacked (its threshold subtracted). A defence is
a callable `images -> images`. Both must be traceable by JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxadv.attacks.rows import spread
from jaxadv.attacks.wrap import against
from jaxadv.classifier import Classifier, as_pytree, from_function, identity
from jaxadv.errors import UserError
from jaxadv.norms import Radius
from jaxadv.types import (
  Attack,
  ClassifierLike,
  Images,
  Keys,
  Labels,
  Logits,
  Scores,
  bound,
)
from jaxadv.utils import check_range, check_whole

Score = Callable[[Images], Scores]


def joint_classifier(classifier: ClassifierLike, score: Score) -> Classifier:
  """Adds a class "attacked" to a classifier, for targeted attacks.

  With the logits Z shifted so that the smallest is 0, the added one is
  `(score + 1) * max(Z)`: the largest exactly where the score is positive. A
  targeted attack thus succeeds where the target is predicted and nothing
  flagged. An untargeted one would count a flagged picture as a success; use
  `evading` for it.

  Args:
    classifier: Any classifier of K classes.
    score: Positive where a picture is flagged; a pytree keeps its weights out
      of the compiled program.

  Returns:
    A `Classifier` of K + 1 classes, stochastic if the given one is.

  Departs from the paper: the shift, without which the formula fails where all
  logits are negative.

  References:
    Carlini and Wagner, Adversarial Examples Are Not Easily Detected, 2017,
    https://arxiv.org/abs/1705.07263, section 3.2; Li et al., Are L2
    Adversarial Examples Intrinsically Different?, 2020, section 4 (white box).
  """
  parts = (as_pytree(classifier), as_pytree(score))
  stochastic = getattr(classifier, 'stochastic', False)
  return from_function(_joint_logits, parts, stochastic=stochastic)


def _joint_logits(
  parts: tuple[Any, Score], images: Images, *keys: Keys
) -> Logits:
  classifier, score = parts
  logits = classifier(images, *keys)
  logits = logits - jnp.min(logits, axis=-1, keepdims=True)
  flagged = (score(images) + 1)[:, None]
  largest = jnp.max(logits, axis=-1, keepdims=True)
  return jnp.concatenate([logits, flagged * largest], axis=-1)


def evading(attack: Attack, score: Score, beta: Radius = 1.0) -> Attack:
  """Makes an attack fool classifier and detector at once.

  The attack, unchanged, sees a classifier whose logits behave like this. Read
  as values, they say whether the attack has success: only where the
  classifier is fooled and nothing flagged; else the label has the largest
  logit (targeted: not the largest). Read as gradients, `beta` times the
  detector's loss is added to the label's logit (targeted: subtracted), so
  that a step against the label is one against the combined loss. The
  detector's loss is a hinge: the score where it is positive, else 0.

  That suits attacks that follow the gradient of a loss, with a budget (PGD)
  or of minimal norm (DDN, Carlini-Wagner). To search beta for every picture:

    over(lambda beta: evading(attack, score, beta), (0.1, 1.0, 10.0))

  keeps the first success, and with `smallest=norms.l2` the smallest.

  Args:
    attack: An `Attack`, targeted or not.
    score: Positive where a picture is flagged. One without a useful gradient
      needs a stand-in, see `bpda`.
    beta: Weight of the detector's loss, at least 0; a scalar or float32[B],
      traced or not.

  Returns:
    An `Attack`. A row has success if its picture is misclassified (targeted:
    reaches the class) and not flagged. That holds from the start, too: a
    misclassified clean picture comes back clean unless it is flagged.

  Raises:
    UserError: If a concrete beta is negative.

  Departs from the paper: a hinge in place of the detector's cross-entropy,
  which goes on pressing where nothing is flagged and so reaches the joint
  optimum for one beta at most, the hinge for all that are large enough; and
  it is weighed against the label's logit, because the gradient of the
  classifier's cross-entropy vanishes where that is sure.

  References:
    Li et al., Are L2 Adversarial Examples Intrinsically Different?, 2020,
    section 4 (white box, untargeted).
  """
  check_range('beta', beta, 0, float('inf'))
  harder = -1 if attack.targeted else 1

  def view(
    classifier: ClassifierLike, images: Images, labels: Labels, beta: jax.Array
  ) -> ClassifierLike:
    del images

    def logits(attacked: Images) -> Logits:
      logits, flag = classifier(attacked), score(attacked)
      is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
      own = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
      rival = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
      # By enough to be another number, however large the logits.
      failing = rival + harder * (1 + 1e-6 * jnp.abs(rival))
      failing = harder * jnp.maximum(harder * own, harder * failing)
      value = jax.lax.stop_gradient(jnp.where(flag <= 0, own, failing))
      slope = own + harder * beta * jax.nn.relu(flag)
      slope = slope - jax.lax.stop_gradient(slope)  # Exactly 0.
      return jnp.where(is_label, (value + slope)[:, None], logits)

    return logits

  def draw(keys: Keys, images: Images) -> jax.Array:
    del images
    return spread('beta', beta, keys.shape)

  return against(attack, view, draw)


def bpda(
  defence: Callable[..., Images],
  backward: Callable[[Images], Images] = identity,
) -> Callable[..., Images]:
  """Gives a defence the gradient of a stand-in.

  Forward, pictures go through the defence; backward, gradients go through
  `backward` at the same pictures, which ought to do about the same.

  Args:
    defence: `(images, *others) -> images`, float32[B, H, W, C]; need not be
      differentiable. Others, such as keys, get no gradient.
    backward: `images -> images`, differentiable; the default is right for a
      defence that changes pictures little.

  Returns:
    `(images, *others) -> images`. Attack the chain:

      from_function(lambda images: classifier(bpda(defence)(images)))

  References:
    Athalye et al., Obfuscated Gradients Give a False Sense of Security, 2018,
    https://arxiv.org/abs/1802.00420, section 4.1.
  """

  @jax.custom_vjp
  def passed(images: Images, *others: jax.Array) -> Images:
    return defence(images, *others)

  def forward(images: Images, *others: jax.Array) -> tuple[Images, Any]:
    return defence(images, *others), (images, others)

  def pull(
    kept: tuple[Images, tuple[Any, ...]], cotangent: jax.Array
  ) -> tuple[Any, ...]:
    images, others = kept
    (gradient,) = jax.vjp(backward, images)[1](cotangent)
    return (gradient, *(None for _ in others))

  passed.defvjp(forward, pull)
  return passed


@dataclasses.dataclass(frozen=True)
class _MeanLogits:
  """Static half of `eot`; equal numbers of draws compare equal."""

  num_draws: int

  def __call__(
    self, classifier: Classifier, images: Images, keys: Keys
  ) -> Logits:
    draw = lambda turn: bound(classifier, keys, turn)(images)
    return jax.lax.map(draw, jnp.arange(self.num_draws)).mean(axis=0)


def eot(classifier: Classifier, num_draws: int) -> Classifier:
  """Averages a stochastic classifier, so that attacks see its expectation.

  Args:
    classifier: A stochastic `Classifier`.
    num_draws: Draws for each call, one after the other, at least 1; memory
      for a gradient grows with it.

  Returns:
    A stochastic `Classifier` whose logits are the mean of `num_draws`; every
    step of an attack has fresh draws.

  Raises:
    UserError: If the classifier is not stochastic or `num_draws` below 1.

  Departs from the paper: the mean is taken of the logits, and the loss of it.

  References:
    Athalye et al., Synthesizing Robust Adversarial Examples, 2018,
    https://arxiv.org/abs/1707.07397, section 2.
  """
  check_whole('num_draws', num_draws, 1)
  if not getattr(classifier, 'stochastic', False):
    raise UserError(
      'eot was given a classifier that is not stochastic; attack it as it is, '
      'or declare it with from_function(..., stochastic=True)'
    )
  return from_function(_MeanLogits(num_draws), classifier, stochastic=True)
