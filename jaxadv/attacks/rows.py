"""What several attacks do with the rows of their states."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp

from jaxadv.losses import logit_of
from jaxadv.norms import Radius, per_row
from jaxadv.types import ClassifierLike

State = TypeVar('State')


def keep_done(state: State, new: State) -> State:
  """Takes a new state, but the old one in rows that were done already."""
  done = state.done  # type: ignore[attr-defined]
  return jax.tree.map(
    lambda old, now: jnp.where(per_row(done, now), old, now), state, new
  )


def spread(value: Radius, rows: tuple[int, ...]) -> jax.Array:
  """A hyperparameter as a part of a state: float32[B], the shape `rows`."""
  return jnp.broadcast_to(jnp.asarray(value, jnp.float32), rows)


def num_classes(classifier: ClassifierLike, images: jax.Array) -> int:
  """Number of logits of a classifier; runs nothing."""
  return jax.eval_shape(lambda x: classifier(x), images).shape[-1]


def class_of_rank(logits: jax.Array, rank: jax.Array) -> jax.Array:
  """Class with the largest logit after `rank` others: [B, K] to int32[B].

  A rank beyond the last class gives the last.
  """
  order = jnp.argsort(logits, axis=-1, descending=True)
  return logit_of(order, jnp.minimum(rank, logits.shape[-1] - 1))
