"""The search for the constant of attacks that minimise distance + c * loss.

Shared by Carlini-Wagner and EAD. A row's search is a number of runs of a
gradient method, each with a constant of its own; here is what judges a step,
tells when a run is over and chooses the constant of the next. Every row is at
its own place: one that ends a run early begins the next at once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv.attacks.rows import spread
from jaxadv.losses import leads, succeeded
from jaxadv.norms import Radius
from jaxadv.types import Labels, Logits
from jaxadv.utils import check_range, check_whole

# From this many runs on, the last one repeats the smallest constant that had
# success, as in the authors' code.
_REPEAT_FROM = 10
# By which share the loss has to fall in a tenth of a run.
_PROGRESS = 1e-4


class Search(NamedTuple):
  """Where each row stands in its search for the constant.

  Attributes:
    const: float32[B], the constant of this run.
    lower: float32[B], the largest constant known to be too small.
    upper: float32[B], the smallest constant that had success, or infinity.
    found: bool[B], whether this run had success.
    past_loss: float32[B], the loss when progress was last looked at.
    steps: int32[B], steps of this run so far.
    runs: int32[B], runs ended so far.
  """

  const: jax.Array
  lower: jax.Array
  upper: jax.Array
  found: jax.Array
  past_loss: jax.Array
  steps: jax.Array
  runs: jax.Array


def check(
  num_steps: int,
  binary_search_steps: int,
  initial_const: Radius,
  learning_rate: Radius,
  confidence: Radius,
) -> None:
  """Refuses hyperparameters out of range, see `carlini_wagner`.

  Raises:
    UserError: If one lies outside its range.
  """
  infinity = float('inf')
  check_whole('num_steps', num_steps, 1)
  check_whole('binary_search_steps', binary_search_steps, 1)
  check_range('initial_const', initial_const, 0, infinity, open_low=True)
  check_range('learning_rate', learning_rate, 0, infinity, open_low=True)
  check_range('confidence', confidence, 0, infinity)


def start(initial_const: Radius, rows: tuple[int, ...]) -> Search:
  """Begins the first run of every row.

  Args:
    initial_const: The first constant, a scalar or float32[B].
    rows: The shape, (B,).

  Returns:
    A `Search`.
  """
  return Search(
    const=spread('initial_const', initial_const, rows),
    lower=jnp.zeros(rows, jnp.float32),
    upper=jnp.full(rows, jnp.inf, jnp.float32),
    found=jnp.zeros(rows, bool),
    past_loss=jnp.full(rows, jnp.inf, jnp.float32),
    steps=jnp.zeros(rows, jnp.int32),
    runs=jnp.zeros(rows, jnp.int32),
  )


def hinge(
  logits: Logits,
  labels: Labels,
  confidence: jax.Array,
  *,
  targeted: bool,
) -> tuple[jax.Array, jax.Array]:
  """The loss of Carlini and Wagner, their f_6, and whether it is satisfied.

  Args:
    logits: float32[B, K].
    labels: int32[B], true classes, or the classes to reach.
    confidence: float32[B], the lead in logits that is asked for.
    targeted: Whether `labels` are the classes to reach.

  Returns:
    How much of the lead is missing, float32[B], at least 0; and bool[B],
    whether the row succeeded with this lead.
  """
  lead, beyond_ties = leads(logits, labels)
  success = succeeded(logits, labels, targeted=targeted)
  if targeted:
    return jax.nn.relu(confidence + lead), success & (-lead >= confidence)
  # A class that ties with the label may be a copy of it, whose lead never
  # changes: what is missing is missing to the others.
  missing = jax.nn.relu(confidence - (lead + beyond_ties))
  return missing, success & (lead >= confidence)


def advance(
  search: Search,
  hit: jax.Array,
  loss: jax.Array,
  *,
  num_steps: int,
  binary_search_steps: int,
  abort_early: bool,
) -> tuple[Search, jax.Array]:
  """Counts a step, and begins the next run of the rows whose run is over.

  Args:
    search: Where the rows stand.
    hit: bool[B], whether the picture of this step is a success.
    loss: float32[B], what the run minimises.
    num_steps: Largest number of steps of a run.
    binary_search_steps: Number of runs.
    abort_early: Whether a run also ends where a tenth of it did not lower the
      loss.

  Returns:
    The `Search` after the step; and bool[B], the rows whose run is over, whose
    method has to start anew.
  """
  look = search.steps % max(num_steps // 10, 1) == 0
  # Written so that a NaN is no progress.
  stuck = look & ~(loss <= (1 - _PROGRESS) * search.past_loss)
  ended = search.steps + 1 >= num_steps
  if abort_early:
    ended |= stuck

  found = search.found | hit
  const = search.const
  upper = jnp.where(found, jnp.minimum(search.upper, const), search.upper)
  lower = jnp.where(found, search.lower, jnp.maximum(search.lower, const))
  following = jnp.where(jnp.isinf(upper), const * 10, (lower + upper) / 2)
  if binary_search_steps >= _REPEAT_FROM:
    last = search.runs + 2 == binary_search_steps
    following = jnp.where(last & jnp.isfinite(upper), upper, following)

  select = lambda new, old: jnp.where(ended, new, old)
  return Search(
    const=select(following, const),
    lower=select(lower, search.lower),
    upper=select(upper, search.upper),
    found=select(False, found),
    past_loss=select(jnp.inf, jnp.where(look, loss, search.past_loss)),
    steps=select(0, search.steps + 1),
    runs=search.runs + ended,
  ), ended
