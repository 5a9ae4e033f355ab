"""Losses that attacks raise, and the rule that says when one succeeded.

All take logits float32[B, K] and labels int32[B] and give one value a row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Softmax cross-entropy in nats, float32[B].

  Optax's, but to the bit the same for a row whatever the batch: on CPU, XLA
  otherwise fuses subtraction and exponential in a way that rounds differently
  in the vectorised part of a batch and in the rest.
  """
  largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  shifted = jax.lax.optimization_barrier(logits - largest)
  own = jnp.take_along_axis(shifted, labels[:, None], axis=-1)[:, 0]
  return jnp.log(jnp.sum(jnp.exp(shifted), axis=-1)) - own


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Largest other logit minus that of the label, float32[B].

  Positive where the classifier errs. Unlike the cross-entropy its gradient
  does not vanish where the classifier is very sure.
  """
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  other = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
  own = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
  return other - own


def succeeded(
  logits: jax.Array, labels: jax.Array, *, targeted: bool = False
) -> jax.Array:
  """Whether the predicted class is what an attack wants.

  Args:
    logits: float32[B, K].
    labels: int32[B], true classes, or the classes to reach.
    targeted: Whether `labels` are the classes to reach.

  Returns:
    bool[B]. A row with a NaN among its logits did not succeed: the classifier
    broke, it was not fooled.
  """
  hit = jnp.argmax(logits, axis=-1) == labels
  broken = jnp.any(jnp.isnan(logits), axis=-1)
  return (hit if targeted else ~hit) & ~broken
