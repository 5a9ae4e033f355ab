"""DeepFool: steps to the nearest boundary of the linearised classifier."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv.attacks.rows import spread, twins_last
from jaxadv.errors import UserError
from jaxadv.losses import logit_of, succeeded
from jaxadv.norms import Radius, l1, l2, linf, per_row
from jaxadv.types import (
  Attack,
  AttackResult,
  ClassifierLike,
  Images,
  Keys,
  Labels,
)
from jaxadv.utils import check_range, check_whole

# The authors' code makes every step longer by this much, else a picture can
# stall in front of a boundary that it approaches ever more slowly.
_EXTRA = 1e-4


class DeepFoolState(NamedTuple):
  """State of DeepFool, one row a picture.

  Attributes:
    delta: float32[B, H, W, C], the sum of the steps, without overshoot.
    overshoot: float32[B].
    rivals: int32[B, N], the classes whose boundaries are looked at.
    done: bool[B], whether the overshot picture is a success.
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
  norm: str = 'l2',
  targeted: bool = False,
) -> Attack:
  """Finds a small change that crosses the nearest class boundary.

  A minimal-norm attack. Each step linearises the logits, takes the boundary
  nearest in the norm between the label and its strongest rivals, and walks
  there. If targeted, it walks to the boundary between the class to reach and
  the strongest of the others, which each step finds anew.

  Args:
    num_steps: Largest number of steps, at least 1.
    overshoot: By which fraction the perturbation is enlarged to end beyond
      the boundary, at least 0; a scalar or float32[B], traced or not.
    num_candidates: Number of classes looked at, the label among them, at
      least 2: those with the largest logits on the clean picture. A step
      costs a forward pass to linearise, one backward pass for every rival
      and a forward pass to judge. Not used if targeted: the class to reach
      is then the only rival.
    norm: 'l2' or 'linf', in which the change is small.
    targeted: Whether `labels` name the classes to reach.

  Returns:
    An `Attack`. A row without success after `num_steps` holds the clean
    picture.

  Raises:
    UserError: If a hyperparameter lies outside its range.

  Departs from the paper as the authors' own code does: overshoot enters every
  step, and only the strongest rivals are looked at. Images are clipped to
  [0, 1]. The paper has no targeted version.

  References:
    Moosavi-Dezfooli et al., DeepFool, 2016, https://arxiv.org/abs/1511.04599,
    section 3, algorithm 2, and equations 10 and 11 (other norms).
  """
  check_whole('num_steps', num_steps, 1)
  check_range('overshoot', overshoot, 0, float('inf'))
  check_whole('num_candidates', num_candidates, 2)
  if norm not in ('l2', 'linf'):
    raise UserError(f"norm is {norm!r} but must be 'l2' or 'linf'")

  def to_boundary(
    gradient: jax.Array, gap: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Distance to where a linear function closes its gap, and the move.

    Where it is flat, as between two classes that are copies of each other,
    there is no boundary, however small the gap: the distance is infinite.
    """
    # The dual norm says how much the function rises over a unit of distance.
    slope = jnp.maximum((l2 if norm == 'l2' else l1)(gradient), 1e-12)
    distance = jnp.where(linf(gradient) > 0, gap / slope, jnp.inf)
    if norm == 'l2':
      return distance, gradient * per_row((distance + _EXTRA) / slope, gradient)
    return distance, jnp.sign(gradient) * per_row(distance + _EXTRA, gradient)

  def attacked(images: Images, state: DeepFoolState) -> Images:
    delta = state.delta * per_row(1 + state.overshoot, images)
    return jnp.clip(images + delta, 0, 1)

  def init(
    keys: Keys, classifier: ClassifierLike, images: Images, labels: Labels
  ) -> DeepFoolState:
    del keys  # Deterministic.
    logits = classifier(images)
    if targeted:
      rivals = labels[:, None]
    else:
      _, strongest = jax.lax.top_k(
        twins_last(logits), min(num_candidates, logits.shape[-1])
      )
      # The first is the label itself in all rows that will be attacked.
      rivals = strongest[:, 1:]
    return DeepFoolState(
      delta=jnp.zeros_like(images),
      overshoot=spread('overshoot', overshoot, labels.shape),
      rivals=rivals,
      done=succeeded(logits, labels, targeted=targeted),
    )

  def step(
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    state: DeepFoolState,
  ) -> DeepFoolState:
    logits, pullback = jax.vjp(classifier, attacked(images, state))
    one_hot = functools.partial(
      jax.nn.one_hot, num_classes=logits.shape[-1], dtype=logits.dtype
    )
    leading = labels
    if targeted:
      others = jnp.where(one_hot(labels) > 0, -jnp.inf, logits)
      leading = jnp.argmax(others, axis=-1)

    def nearer(best: Any, rival: jax.Array) -> tuple[Any, None]:
      # One backward pass after the other: on CPU faster than one vmapped
      # batch, and a fraction of its memory.
      (gradient,) = pullback(one_hot(rival) - one_hot(leading))
      gap = jnp.abs(logit_of(logits, rival) - logit_of(logits, leading))
      distance, move = to_boundary(gradient, gap)
      closer = distance < best[0]
      return (
        jnp.where(closer, distance, best[0]),
        jnp.where(per_row(closer, move), move, best[1]),
      ), None

    unreached = jnp.full(labels.shape, jnp.inf, jnp.float32)
    nothing = (unreached, jnp.zeros_like(images))
    (_, move), _ = jax.lax.scan(nearer, nothing, state.rivals.T)
    delta = jnp.where(per_row(state.done, move), 0, move) + state.delta
    state = state._replace(delta=delta)
    judged = classifier(attacked(images, state))
    success = succeeded(judged, labels, targeted=targeted)
    return state._replace(done=state.done | success)

  def finish(
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    state: DeepFoolState,
  ) -> AttackResult:
    del classifier, labels  # Each step judged its own result.
    result = jnp.where(
      per_row(state.done, images), attacked(images, state), images
    )
    return AttackResult(result, state.done)

  return Attack(init, step, finish, num_steps, targeted)
