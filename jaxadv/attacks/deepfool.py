"""DeepFool: steps to the nearest boundary of the linearised classifier."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv.losses import succeeded
from jaxadv.norms import Radius, l2, per_row
from jaxadv.types import Attack, AttackResult
from jaxadv.utils import check_range

# The authors' code makes every step longer by this much, else a picture can
# stall in front of a boundary that it approaches ever more slowly.
_EXTRA = 1e-4


class DeepFoolState(NamedTuple):
  """State of DeepFool, one row a picture.

  Attributes:
    delta: float32[B, H, W, C], the sum of the steps, without overshoot.
    overshoot: float32[B].
    rivals: int32[B, N], the classes whose boundaries are looked at.
    done: bool[B], whether the overshot picture is misclassified.
  """

  delta: jax.Array
  overshoot: jax.Array
  rivals: jax.Array
  done: jax.Array


def deepfool(
  num_steps: int = 50,
  *,
  overshoot: Radius = 0.02,
  num_candidates: int = 10,
) -> Attack:
  """Finds a small L2 change that crosses the nearest class boundary.

  A minimal-norm attack. Each step linearises the logits, takes the boundary
  nearest in L2 between the label and its strongest rivals, and walks there.

  Args:
    num_steps: Largest number of steps, at least 1.
    overshoot: By which fraction the perturbation is enlarged to end beyond
      the boundary, at least 0; a scalar or float32[B], traced or not.
    num_candidates: Number of classes looked at, the label among them, at
      least 2: those with the largest logits on the clean picture. A step
      costs a forward pass to linearise, one backward pass for every rival
      and a forward pass to judge.

  Returns:
    An `Attack`. A row that is still correct after `num_steps` holds the clean
    picture.

  Raises:
    UserError: If a hyperparameter lies outside its range.

  Departs from the paper as the authors' own code does: overshoot enters every
  step, and only the strongest rivals are looked at. Images are clipped to
  [0, 1].

  References:
    Moosavi-Dezfooli et al., DeepFool, 2016, https://arxiv.org/abs/1511.04599,
    section 3, algorithm 2.
  """
  check_range('num_steps', num_steps, 1, float('inf'))
  check_range('overshoot', overshoot, 0, float('inf'))
  check_range('num_candidates', num_candidates, 2, float('inf'))

  def attacked(images, state):
    delta = state.delta * per_row(1 + state.overshoot, images)
    return jnp.clip(images + delta, 0, 1)

  def init(keys, classifier, images, labels):
    del keys  # Deterministic.
    logits = classifier(images)
    _, strongest = jax.lax.top_k(logits, min(num_candidates, logits.shape[-1]))
    return DeepFoolState(
      delta=jnp.zeros_like(images),
      overshoot=jnp.broadcast_to(
        jnp.asarray(overshoot, jnp.float32), labels.shape
      ),
      # The first is the label itself in all rows that will be attacked.
      rivals=strongest[:, 1:],
      done=succeeded(logits, labels),
    )

  def step(classifier, images, labels, state):
    logits, pullback = jax.vjp(classifier, attacked(images, state))
    num_classes = logits.shape[-1]
    own = jax.nn.one_hot(labels, num_classes)
    pick = lambda classes: jnp.take_along_axis(logits, classes[:, None], 1)[
      :, 0
    ]

    def nearer(best, rival):
      # One backward pass after the other: on CPU faster than one vmapped
      # batch, and a fraction of its memory.
      towards = jax.nn.one_hot(rival, num_classes) - own
      (gradient,) = pullback(towards.astype(logits.dtype))
      slope = jnp.maximum(l2(gradient), 1e-12)
      gap = jnp.abs(pick(rival) - pick(labels))
      distance = gap / slope
      scale = (distance + _EXTRA) / slope
      move = gradient * per_row(scale, gradient)
      closer = distance < best[0]
      return (
        jnp.where(closer, distance, best[0]),
        jnp.where(per_row(closer, move), move, best[1]),
      ), None

    nothing = (jnp.full(labels.shape, jnp.inf), jnp.zeros_like(images))
    (_, move), _ = jax.lax.scan(nearer, nothing, state.rivals.T)
    delta = jnp.where(per_row(state.done, move), 0, move) + state.delta
    state = state._replace(delta=delta)
    judged = succeeded(classifier(attacked(images, state)), labels)
    return state._replace(done=state.done | judged)

  def finish(classifier, images, labels, state):
    del classifier, labels  # Each step judged its own result.
    result = jnp.where(
      per_row(state.done, images), attacked(images, state), images
    )
    return AttackResult(result, state.done)

  return Attack(init, step, finish, max_steps=num_steps)
