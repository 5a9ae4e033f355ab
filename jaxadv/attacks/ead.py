"""EAD: the elastic-net attack, a Carlini-Wagner that prefers few pixels."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.attacks import const_search
from jaxadv.attacks.rows import keep_done, spread
from jaxadv.errors import UserError
from jaxadv.losses import succeeded
from jaxadv.norms import Radius, l1, l2, per_row
from jaxadv.types import (
  Attack,
  AttackResult,
  ClassifierLike,
  Images,
  Keys,
  Labels,
)
from jaxadv.utils import check_range

DECISION_RULES = ('en', 'l1')


class EADState(NamedTuple):
  """State of EAD, one row a picture.

  Attributes:
    images: float32[B, H, W, C], the iterate.
    ahead: float32[B, H, W, C], the iterate and its momentum, which the
      gradient is taken at; may leave [0, 1] a little.
    best: float32[B, H, W, C], the nearest success so far, else clean.
    distance: float32[B], that of `best` by the decision rule, infinity without
      success.
    learning_rate: float32[B].
    beta: float32[B].
    confidence: float32[B].
    search: The constants, and each row's counters.
    done: bool[B].
  """

  images: Images
  ahead: jax.Array
  best: jax.Array
  distance: jax.Array
  learning_rate: jax.Array
  beta: jax.Array
  confidence: jax.Array
  search: const_search.Search
  done: jax.Array


def ead(
  num_steps: int = 1000,
  *,
  binary_search_steps: int = 9,
  initial_const: Radius = 1e-3,
  learning_rate: Radius = 0.01,
  beta: Radius = 0.01,
  decision_rule: str = 'en',
  confidence: Radius = 0.0,
  abort_early: bool = True,
  targeted: bool = False,
) -> Attack:
  """Finds a change that is small in L1 and L2 by accelerated shrinkage.

  A minimal-norm attack. It minimises beta * ||delta||_1 + ||delta||_2^2 +
  c * hinge by FISTA: a gradient step of the smooth part, then every pixel is
  drawn back by beta to its clean value, where most of them stay. The constant
  c is searched as by `carlini_wagner`. A step costs two forward passes and one
  backward pass: the gradient is taken ahead of the iterate that is judged.

  Args:
    num_steps: Largest number of steps of a run, at least 1.
    binary_search_steps: Number of runs, each with its own c, at least 1; with
      1 the constant is fixed.
    initial_const: The first c, above 0; a scalar or float32[B], traced or
      not, like the other numbers here.
    learning_rate: First step size, above 0; it falls with the square root of
      the steps left.
    beta: Weight of the L1 norm, and by how much a pixel is drawn back in a
      step, in image units, at least 0.
    decision_rule: Of two successes the nearer is kept, 'en': by the elastic
      net beta * L1 + L2^2, 'l1': by the L1 norm.
    confidence: By how much the wrong logit has to lead, at least 0.
    abort_early: Whether a run ends where a tenth of it did not lower the loss
      by a share of 1e-4.
    targeted: Whether `labels` name the classes to reach.

  Returns:
    An `Attack`. A row without success holds the clean picture; one that is
    misclassified when clean comes back clean, whatever the confidence.

  Raises:
    UserError: If a hyperparameter lies outside its range.

  Departs from the paper as the authors' own code does: pixels are drawn back
  by beta, not by beta times the step size, and runs are aborted. That code
  aborts the whole batch, here each row has its own end.

  References:
    Chen et al., EAD: Elastic-Net Attacks to Deep Neural Networks via
    Adversarial Examples, 2018, https://arxiv.org/abs/1709.04114, section 3,
    algorithm 1.
  """
  const_search.check(
    num_steps, binary_search_steps, initial_const, learning_rate, confidence
  )
  check_range('beta', beta, 0, float('inf'))
  if decision_rule not in DECISION_RULES:
    raise UserError(
      f'decision_rule is {decision_rule!r} but must be one of '
      f'{", ".join(DECISION_RULES)}'
    )
  count = np.arange(num_steps)
  shrinking = np.sqrt(1 - count / num_steps)
  momentum = count / (count + 3)

  def init(
    keys: Keys, classifier: ClassifierLike, images: Images, labels: Labels
  ) -> EADState:
    del keys, classifier  # Deterministic; the first step judges the clean ones.
    rows = labels.shape
    return EADState(
      images=images,
      ahead=images,
      best=images,
      distance=jnp.full(rows, jnp.inf, jnp.float32),
      learning_rate=spread('learning_rate', learning_rate, rows),
      beta=spread('beta', beta, rows),
      confidence=spread('confidence', confidence, rows),
      search=const_search.start(initial_const, rows),
      done=jnp.zeros(rows, bool),
    )

  def step(
    classifier: ClassifierLike, images: Images, labels: Labels, state: EADState
  ) -> EADState:
    search = state.search
    look_up = lambda table: jnp.asarray(table, jnp.float32)[search.steps]

    def weighted(ahead: jax.Array) -> tuple[jax.Array, jax.Array]:
      logits = classifier(ahead)
      missing, _ = const_search.hinge(
        logits, labels, state.confidence, targeted=targeted
      )
      fooled = succeeded(logits, labels, targeted=targeted)
      return jnp.sum(search.const * missing), fooled

    gradient, fooled = jax.grad(weighted, has_aux=True)(state.ahead)
    # Only the very first point is the clean picture of a row not yet judged.
    given_away = fooled & (search.runs == 0) & (search.steps == 0)

    delta = state.ahead - images
    step_size = state.learning_rate * look_up(shrinking)
    delta -= per_row(step_size, delta) * (gradient + 2 * delta)
    back = jnp.maximum(jnp.abs(delta) - per_row(state.beta, delta), 0)
    point = jnp.clip(images + jnp.sign(delta) * back, 0, 1)
    ahead = point + per_row(look_up(momentum), point) * (point - state.images)

    missing, hit = const_search.hinge(
      classifier(point), labels, state.confidence, targeted=targeted
    )
    length = l1(point - images)
    elastic = state.beta * length + l2(point - images) ** 2
    distance = length if decision_rule == 'l1' else elastic
    better = hit & (distance < state.distance) & ~given_away
    search, ended = const_search.advance(
      search,
      hit,
      elastic + search.const * missing,
      num_steps=num_steps,
      binary_search_steps=binary_search_steps,
      abort_early=abort_early,
    )
    anew = lambda leaf: jnp.where(per_row(ended, leaf), images, leaf)
    new = state._replace(
      images=anew(point),
      ahead=anew(ahead),
      best=jnp.where(per_row(better, point), point, state.best),
      distance=jnp.where(
        given_away, 0, jnp.where(better, distance, state.distance)
      ),
      search=search,
      done=given_away | (search.runs >= binary_search_steps),
    )
    return keep_done(state, new)

  def finish(
    classifier: ClassifierLike, images: Images, labels: Labels, state: EADState
  ) -> AttackResult:
    del classifier, images, labels  # Each step judged its own picture.
    return AttackResult(state.best, jnp.isfinite(state.distance))

  return Attack(
    init, step, finish, num_steps * binary_search_steps, targeted=targeted
  )
