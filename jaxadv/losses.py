"""Losses that attacks raise, and the rule that says when one succeeded.

All take logits float32[B, K] and labels int32[B] and give one value a row.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxadv.errors import UserError
from jaxadv.types import Labels, Logits

# By how little a tie lies below 0, as a share of the gap to the other classes.
_TIED = 2.0**-20


def logit_of(logits: Logits, labels: Labels) -> jax.Array:
  """The logit of one class a row: [B, K] and int32[B] to float32[B]."""
  return jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]


def cross_entropy(logits: Logits, labels: Labels) -> jax.Array:
  """Softmax cross-entropy in nats, float32[B].

  Optax's, but to the bit the same for a row whatever the batch: on CPU, XLA
  otherwise fuses subtraction and exponential in a way that rounds differently
  in the vectorised part of a batch and in the rest.
  """
  largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  shifted = jax.lax.optimization_barrier(logits - largest)
  own = logit_of(shifted, labels)
  return jnp.log(jnp.sum(jnp.exp(shifted), axis=-1)) - own


def leads(logits: Logits, labels: Labels) -> tuple[jax.Array, jax.Array]:
  """Leads of the strongest other class, and of the strongest beyond ties.

  Args:
    logits: float32[B, K].
    labels: int32[B].

  Returns:
    Largest other logit minus that of the label, float32[B]. And, where that
    is exactly 0 and the label predicted nevertheless, the lead of the
    strongest class that does not tie, negative; 0 elsewhere and where all
    classes tie.
  """
  own = logit_of(logits, labels)
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  others = jnp.where(is_label, -jnp.inf, logits)
  lead = jnp.max(others, axis=-1) - own
  lower = jnp.max(jnp.where(others < own[:, None], others, -jnp.inf), axis=-1)
  tied = (lead == 0) & (jnp.argmax(logits, axis=-1) == labels)
  return lead, jnp.where(tied & jnp.isfinite(lower), lower - own, 0)


def margin(logits: Logits, labels: Labels) -> jax.Array:
  """Largest other logit minus that of the label, float32[B].

  Positive where the classifier errs. Unlike the cross-entropy its gradient
  does not vanish where the classifier is very sure.

  Where the label is predicted and another class has exactly its logit, that
  may be a copy of the label, whose lead is 0 for ever. The gradient there is
  also that of the strongest class that does not tie, and the value just below
  0, the more so the further behind that class lies.
  """
  lead, beyond_ties = leads(logits, labels)
  value = jax.lax.stop_gradient(beyond_ties)
  return lead + (beyond_ties - value) + _TIED * value


def dlr(logits: Logits, labels: Labels) -> jax.Array:
  """Difference of logits ratio, float32[B] in [-1, 1].

  The margin divided by the distance of the largest logit to the third
  largest; unlike the margin it does not change when all logits are scaled.
  Equal logits count as one, and minus infinity as none; of two that are left,
  the ratio would be constant, and the margin stays as it is.

  Args:
    logits: float32[B, K], K at least 3.
    labels: int32[B].

  Returns:
    float32[B], positive where the classifier errs.

  Raises:
    UserError: If there are fewer than 3 classes.

  References:
    Croce and Hein, Reliable evaluation of adversarial robustness with an
    ensemble of diverse parameter-free attacks, 2020,
    https://arxiv.org/abs/2003.01690, section 4.1, equation 6.
  """
  _need_classes('dlr', logits, 3)
  highest, _, third = _largest(logits, 3)
  return _ratio(margin(logits, labels), highest, third)


def targeted_dlr(
  logits: Logits, labels: Labels, targets: jax.Array
) -> jax.Array:
  """Difference of logits ratio towards one class, float32[B].

  Raised, like the others here, by an attack: it grows as the logit of the
  target passes that of the label.

  Args:
    logits: float32[B, K], K at least 4.
    labels: int32[B], the true classes.
    targets: int32[B], the classes to reach.

  Returns:
    float32[B], positive where the target beats the label.

  Raises:
    UserError: If there are fewer than 4 classes.

  References:
    Croce and Hein, 2020, https://arxiv.org/abs/2003.01690, equation 7.
  """
  _need_classes('targeted_dlr', logits, 4)
  highest, second, third, fourth = _largest(logits, 4)
  # Of three alone, the ratio to the third would be constant for that class.
  fourth = jnp.where(jnp.isfinite(fourth), fourth, second)
  ahead = logit_of(logits, targets) - logit_of(logits, labels)
  return _ratio(ahead, highest, (third + fourth) / 2)


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  'ce': cross_entropy,
  'margin': margin,
  'dlr': dlr,
}


Loss = Callable[[Logits, Labels], jax.Array]


def loss(name: str | Loss) -> Loss:
  """Gives a loss by its name.

  Args:
    name: 'ce' (cross-entropy), 'margin' or 'dlr'; a loss is given back.

  Returns:
    `(logits, labels) -> float32[B]`.

  Raises:
    UserError: If the name is unknown.
  """
  if callable(name):
    return name
  if name not in LOSSES:
    raise UserError(f'loss is {name!r} but must be one of {", ".join(LOSSES)}')
  return LOSSES[name]


def _largest(logits: Logits, num: int) -> list[jax.Array]:
  """The largest different logits, float32[B] each; minus infinity for none."""
  values = [jnp.max(logits, axis=-1)]
  for _ in range(num - 1):
    lower = jnp.where(logits < values[-1][:, None], logits, -jnp.inf)
    values.append(jnp.max(lower, axis=-1))
  return values


def _ratio(lead: jax.Array, highest: jax.Array, low: jax.Array) -> jax.Array:
  """A lead by the distance of two logits; as it is where there is no second.

  Of two classes alone, others masked or copies of them, a ratio of their
  logits would be constant.
  """
  scale = jnp.where(jnp.isfinite(low), highest - low, 1)
  return lead / (scale + 1e-12)


def _need_classes(name: str, logits: Logits, least: int) -> None:
  num_classes = logits.shape[-1]
  if num_classes < least:
    raise UserError(
      f'the loss {name} compares {least} classes but the classifier has '
      f'{num_classes}; use the margin instead'
    )


def succeeded(
  logits: Logits, labels: Labels, *, targeted: bool = False
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
