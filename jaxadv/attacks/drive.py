"""Runs any attack, plainly or with slots that are refilled."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxadv.types import (
  Attack,
  AttackResult,
  ClassifierLike,
  Images,
  Keys,
  Labels,
  Logits,
  as_arguments,
  bound,
)
from jaxadv.utils import check_whole


@dataclasses.dataclass(frozen=True)
class Composite:
  """Several attacks that run one after the other; see `attacks.combine`.

  Called like an `Attack`.

  Attributes:
    run: `(drive, keys, classifier, images, labels, done) -> AttackResult`,
      where `drive(attack, keys, classifier, images, labels, done=done)` runs
      a part in the way that was asked for.
    targeted: Whether labels name the classes to reach.
  """

  run: Callable[..., AttackResult]
  targeted: bool = False

  def __call__(
    self,
    keys: Keys,
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    done: jax.Array | None = None,
  ) -> AttackResult:
    """Drives the parts to their ends; see `Attack`."""
    return drive(self, keys, classifier, images, labels, done=done)


def drive(
  attack: Attack | Composite,
  keys: Keys,
  classifier: ClassifierLike,
  images: Images,
  labels: Labels,
  *,
  num_slots: int | None = None,
  done: jax.Array | None = None,
) -> AttackResult:
  """Drives an attack to its end over a batch; pure, made to be jitted.

  Plainly, all rows step together until the last one is done. With slots, at
  most `num_slots` rows step together, and one that is done makes room for
  the next row of the batch; pictures that are quickly done then cost no more
  than they need, and the last ones go on in a quarter of the slots. The
  result of a row is the same either way.

  Args:
    attack: Any `Attack`, or several of them as a `Composite`.
    keys: key[B], one a picture; see `picture_keys`.
    classifier: The classifier under attack.
    images: [B, H, W, C], float32 in [0, 1], or uint8; see `Attack`.
    labels: int32[B].
    num_slots: Number of slots (16 to 32 do well on CPU), or None for the
      plain loop. One slot counts as two. A stochastic classifier still sees
      the whole batch at once before the first and after the last step.
    done: bool[B], rows that nobody will read, or None; they get no slot.

  Returns:
    The attacked images and which rows succeeded.

  Raises:
    UserError: If `num_slots` is no whole number or below 1, or keys, images or
      labels have another dtype or shape.
  """
  if num_slots is not None:
    check_whole('num_slots', num_slots, 1)
  keys, images, labels = as_arguments(keys, images, labels)
  if isinstance(attack, Composite):
    part = functools.partial(drive, num_slots=num_slots)
    return attack.run(part, keys, classifier, images, labels, done)
  num_rows = labels.shape[0]
  if num_slots is not None:
    # A lone row is multiplied as a vector, which rounds differently.
    num_slots = max(num_slots, 2)
  if num_slots is None or attack.max_steps == 0 or num_slots >= num_rows:
    return attack(keys, classifier, images, labels, done)

  parted = classifier
  if not getattr(classifier, 'stochastic', False):
    parted = _in_parts(classifier, num_slots)
  state = attack.start(keys, parted, images, labels, done)
  queue = jnp.argsort(state.done, stable=True)
  num_waiting = jnp.sum(~state.done)

  def take(position: jax.Array) -> jax.Array:
    # `num_rows` is no row: reads are clipped, writes dropped.
    row = queue.at[position].get(mode='clip')
    return jnp.where(position < num_waiting, row, num_rows)

  def advance(carry: Any) -> Any:
    state, rows, steps, taken = carry
    read = lambda leaf: leaf.at[rows].get(mode='clip')
    local = attack.next_state(
      bound(classifier, read(keys), steps + 1),
      read(images),
      read(labels),
      jax.tree.map(read, state),
    )
    write = lambda leaf, new: leaf.at[rows].set(new, mode='drop')
    state = jax.tree.map(write, state, local)
    steps = steps + 1
    leaving = (local.done | (steps >= attack.max_steps)) & (rows < num_rows)
    position = taken + jnp.cumsum(leaving) - 1
    rows = jnp.where(leaving, take(position), rows)
    steps = jnp.where(leaving, 0, steps)
    return state, rows, steps, taken + jnp.sum(leaving)

  def more_than(few: int, carry: Any) -> jax.Array:
    return jnp.sum(carry[1] < num_rows) > few

  first = take(jnp.arange(num_slots))
  steps = jnp.zeros(num_slots, jnp.int32)
  carry = (state, first, steps, jnp.asarray(num_slots))
  # When none waits any more, few hard rows are left: they go on in a quarter
  # of the slots, so that the empty ones cost nothing.
  widths = [*dict.fromkeys((num_slots, max(num_slots // 4, 2))), 0]
  for width, narrower in itertools.pairwise(widths):
    state, rows, steps, taken = carry
    kept = jnp.argsort(rows >= num_rows, stable=True)[:width]
    carry = jax.lax.while_loop(
      functools.partial(more_than, narrower),
      advance,
      (state, rows[kept], steps[kept], taken),
    )
  end = bound(parted, keys, attack.max_steps + 1)
  return attack.result(end, images, labels, carry[0])


def _in_parts(classifier: ClassifierLike, size: int) -> ClassifierLike:
  """Shows a classifier `size` pictures at a time, which stay in the caches."""

  def classify(images: Images) -> Logits:
    num_parts = -(-images.shape[0] // size)
    rows = jnp.arange(num_parts * size)
    parts = images.at[rows].get(mode='clip')  # The last row fills the rest.
    logits = jax.lax.map(
      classifier, parts.reshape(num_parts, size, *images.shape[1:])
    )
    return logits.reshape(-1, logits.shape[-1])[: images.shape[0]]

  return classify
