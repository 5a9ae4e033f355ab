"""What several attacks do with the rows of their states."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp

from jaxadv.errors import UserError
from jaxadv.losses import logit_of
from jaxadv.norms import Radius, per_row
from jaxadv.types import ClassifierLike, Images, Logits

State = TypeVar('State')


def keep_done(state: State, new: State) -> State:
  """Takes a new state, but the old one in rows that were done already."""
  done = state.done  # type: ignore[attr-defined]
  return jax.tree.map(
    lambda old, now: jnp.where(per_row(done, now), old, now), state, new
  )


def spread(name: str, value: Radius, rows: tuple[int, ...]) -> jax.Array:
  """A hyperparameter as a part of a state: float32[B], the shape `rows`."""
  array = jnp.asarray(value, jnp.float32)
  if array.shape not in ((), (1,), rows):
    raise UserError(
      f'{name} has the shape {array.shape} but must be a number, or one for '
      f'each of the {rows[0]} pictures; run an attack at several with '
      'evaluate_over'
    )
  return jnp.broadcast_to(array, rows)


def num_classes(classifier: ClassifierLike, images: Images) -> int:
  """Number of logits of a classifier; runs nothing."""
  return jax.eval_shape(lambda x: classifier(x), images).shape[-1]


def twins_last(logits: Logits) -> jax.Array:
  """Puts classes that tie with the first of the largest logits behind all.

  Such a class may be a copy of the predicted one, with no boundary between
  them; to walk there would be in vain.

  Args:
    logits: float32[B, K].

  Returns:
    float32[B, K], -inf where a logit equals the largest but is not the first.
  """
  is_first = jax.nn.one_hot(
    jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool
  )
  tied = logits == jnp.max(logits, axis=-1, keepdims=True)
  return jnp.where(tied & ~is_first, -jnp.inf, logits)


def class_of_rank(logits: Logits, rank: jax.Array) -> jax.Array:
  """Class with the largest logit after `rank` others: [B, K] to int32[B].

  A rank beyond the last class gives the last. Copies of the first class come
  last, see `twins_last`.
  """
  order = jnp.argsort(twins_last(logits), axis=-1, descending=True)
  return logit_of(order, jnp.minimum(rank, logits.shape[-1] - 1))
