"""The attacks of Carlini and Wagner: in L2, and inside an Linf ball."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.attacks import const_search
from jaxadv.attacks.rows import keep_done, spread
from jaxadv.losses import succeeded
from jaxadv.norms import Ball, Radius, as_ball, checked_step, l2, per_row
from jaxadv.types import (
  Attack,
  AttackResult,
  ClassifierLike,
  Images,
  Keys,
  Labels,
)
from jaxadv.utils import check_range

# The box is this much smaller than the range of tanh, or pixels that are 0 or 1
# would lie at infinity, where they never move. With the authors' 1e-6 they need
# thousands of steps.
_ROOM = 0.1
# Of Adam inside a ball of radius 1.
_LINF_RATE = 0.005 / (8 / 255)


class Adam(NamedTuple):
  """Moments of Adam, float32[B, H, W, C] each."""

  mean: jax.Array
  square: jax.Array


def _adam(
  adam: Adam, gradient: jax.Array, count: jax.Array, num_steps: int
) -> tuple[jax.Array, Adam]:
  """One step of Adam of every row, before it is scaled by the learning rate.

  `optax.adam` keeps one counter for all rows; here each has its own, `count`
  int32[B], below `num_steps`.
  """
  steps = np.arange(1, num_steps + 1)
  # Looked up, not computed: powers may round differently with the batch.
  unbias = lambda decay: per_row(
    jnp.asarray(1 / (1 - decay**steps), jnp.float32)[count], gradient
  )
  mean = 0.9 * adam.mean + 0.1 * gradient
  square = 0.999 * adam.square + 0.001 * gradient**2
  size = jnp.sqrt(square * unbias(0.999)) + 1e-8
  return mean * unbias(0.9) / size, Adam(mean, square)


def _free(images: Images) -> jax.Array:
  """The pixels in the space of tanh, where 0 and 1 are finite."""
  return jnp.arctanh((2 * images - 1) / (1 + _ROOM))


class CarliniWagnerState(NamedTuple):
  """State of the L2 attack, one row a picture.

  Attributes:
    free: float32[B, H, W, C], the iterate in the space of tanh.
    adam: Moments of Adam.
    best: float32[B, H, W, C], the nearest success so far, else clean.
    distance: float32[B], L2 distance of `best`, infinity without success.
    learning_rate: float32[B].
    confidence: float32[B].
    search: The constants, and each row's counters.
    done: bool[B].
  """

  free: jax.Array
  adam: Adam
  best: jax.Array
  distance: jax.Array
  learning_rate: jax.Array
  confidence: jax.Array
  search: const_search.Search
  done: jax.Array


def carlini_wagner(
  num_steps: int = 1000,
  *,
  binary_search_steps: int = 9,
  initial_const: Radius = 1e-3,
  learning_rate: Radius = 0.01,
  confidence: Radius = 0.0,
  abort_early: bool = True,
  targeted: bool = False,
) -> Attack:
  """Finds a small L2 change by Adam on distance plus c times a hinge loss.

  A minimal-norm attack. It minimises ||delta||_2^2 + c * hinge, where the
  hinge is the lead that the wrong class (or the class to reach) still lacks.
  Pixels are tanh of a free variable, so they stay in [0, 1]. The constant c is
  searched for every picture: ten times larger until a run had success, then
  by bisection. A step costs one forward and one backward pass, and judges the
  very picture that it evaluates. Rows whose runs end early begin the next run
  at once; with refilled slots (see `drive`) they also make room.

  Args:
    num_steps: Largest number of steps of a run, at least 1.
    binary_search_steps: Number of runs, each with its own c, at least 1; with
      1 the constant is fixed.
    initial_const: The first c, above 0; a scalar or float32[B], traced or
      not, like the other numbers here.
    learning_rate: Of Adam, in the space of tanh, above 0.
    confidence: By how much the wrong logit has to lead, at least 0.
    abort_early: Whether a run ends where a tenth of it did not lower the loss
      by a share of 1e-4.
    targeted: Whether `labels` name the classes to reach.

  Returns:
    An `Attack`. A row without success holds the clean picture; one that is
    misclassified when clean comes back clean, whatever the confidence.

  Raises:
    UserError: If a hyperparameter lies outside its range.

  Departs from the paper as the authors' own code does: runs are aborted, and
  from 10 runs on the last one repeats the best c. Departs from that code: it
  aborts the whole batch, here each row has its own end; it draws pixels to
  the middle by a millionth, so that those at 0 and 1 move, if very slowly;
  here tanh reaches beyond the box by a tenth and the free variable is clipped.

  References:
    Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks,
    2017, https://arxiv.org/abs/1608.04644, sections 5 and 6.1 (f_6).
  """
  const_search.check(
    num_steps, binary_search_steps, initial_const, learning_rate, confidence
  )
  edge = np.arctanh(1 / (1 + _ROOM)).item()

  def init(
    keys: Keys, classifier: ClassifierLike, images: Images, labels: Labels
  ) -> CarliniWagnerState:
    del keys, classifier  # Deterministic; the first step judges the clean ones.
    rows = labels.shape
    nothing = jnp.zeros_like(images)
    return CarliniWagnerState(
      free=_free(images),
      adam=Adam(nothing, nothing),
      best=images,
      distance=jnp.full(rows, jnp.inf, jnp.float32),
      learning_rate=spread('learning_rate', learning_rate, rows),
      confidence=spread('confidence', confidence, rows),
      search=const_search.start(initial_const, rows),
      done=jnp.zeros(rows, bool),
    )

  def step(
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    state: CarliniWagnerState,
  ) -> CarliniWagnerState:
    search = state.search
    tanh = jnp.tanh(state.free)
    inside = jnp.clip(0.5 + 0.5 * (1 + _ROOM) * tanh, 0, 1)
    # The first pass is of the clean picture itself, which tanh rounds.
    fresh = (search.runs == 0) & (search.steps == 0)
    point = jnp.where(per_row(fresh, images), images, inside)

    def weighted(point: jax.Array) -> tuple[Any, Any]:
      logits = classifier(point)
      missing, hit = const_search.hinge(
        logits, labels, state.confidence, targeted=targeted
      )
      fooled = succeeded(logits, labels, targeted=targeted)
      loss = search.const * missing
      return jnp.sum(loss), (loss, hit, fooled)

    gradient, (loss, hit, fooled) = jax.grad(weighted, has_aux=True)(point)
    delta = point - images
    distance = l2(delta)
    given_away = fresh & fooled
    better = (hit | given_away) & (distance < state.distance)

    # By the chain rule through tanh, whose slope is 1 - tanh^2.
    slope = 0.5 * (1 + _ROOM) * (1 - tanh**2)
    move, adam = _adam(
      state.adam, (gradient + 2 * delta) * slope, search.steps, num_steps
    )
    free = state.free - per_row(state.learning_rate, move) * move
    search, ended = const_search.advance(
      search,
      hit,
      distance**2 + loss,
      num_steps=num_steps,
      binary_search_steps=binary_search_steps,
      abort_early=abort_early,
    )
    anew = lambda leaf: jnp.where(per_row(ended, leaf), 0, leaf)
    new = state._replace(
      free=jnp.where(
        per_row(ended, free), _free(images), jnp.clip(free, -edge, edge)
      ),
      adam=jax.tree.map(anew, adam),
      best=jnp.where(per_row(better, point), point, state.best),
      distance=jnp.where(better, distance, state.distance),
      search=search,
      done=given_away | (search.runs >= binary_search_steps),
    )
    return keep_done(state, new)

  def finish(
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    state: CarliniWagnerState,
  ) -> AttackResult:
    del classifier, images, labels  # Each step judged its own picture.
    return AttackResult(state.best, jnp.isfinite(state.distance))

  return Attack(
    init, step, finish, num_steps * binary_search_steps, targeted=targeted
  )


class LinfState(NamedTuple):
  """State of the Linf attack, one row a picture.

  Attributes:
    images: float32[B, H, W, C], the iterate.
    adam: Moments of Adam.
    kept: float32[B, H, W, C], the last iterate that succeeded.
    found: bool[B], whether there is one.
    epsilon: float32[B].
    const: float32[B].
    learning_rate: float32[B].
    confidence: float32[B].
    steps: int32[B], the number of steps so far.
    done: bool[B].
  """

  images: Images
  adam: Adam
  kept: jax.Array
  found: jax.Array
  epsilon: jax.Array
  const: jax.Array
  learning_rate: jax.Array
  confidence: jax.Array
  steps: jax.Array
  done: jax.Array


def carlini_wagner_linf(
  epsilon: Radius | Ball,
  num_steps: int = 100,
  *,
  const: Radius = 5.0,
  learning_rate: Radius | None = None,
  confidence: Radius = 0.0,
  targeted: bool = False,
) -> Attack:
  """Lowers the hinge loss of Carlini and Wagner by Adam inside an Linf ball.

  A budget attack. Adam moves the pixels themselves; after every step they
  are clipped to the ball and to [0, 1]. A step costs one forward and one
  backward pass, judging the last iterate one more forward pass.

  Args:
    epsilon: Radius in image units, in (0, 1]; a scalar or float32[B], traced
      or not, like the other numbers here. Or `linf_ball(...)`.
    num_steps: Number of steps, at least 1.
    const: Weight c of the loss, above 0. Inside the ball, where clipping
      keeps the iterate, the penalty that it is weighed against is zero, and
      Adam does not see the scale of a loss: it matters only for gradients
      near Adam's 1e-8.
    learning_rate: Of Adam, in image units, above 0, and about the length of
      its first steps. None follows the radius: 0.005 for 8/255, and at least
      `norms.usual_step`.
    confidence: By how much the wrong logit has to lead before the loss is
      zero, at least 0.
    targeted: Whether `labels` name the classes to reach.

  Returns:
    An `Attack`. Its images are the last iterate that succeeded, else the last
    one; a row that is misclassified when clean comes back clean.

  Raises:
    UserError: If a hyperparameter lies outside its range.

  Departs from the paper, which finds the smallest ball by raising c and
  shrinking a threshold: here the ball is given and c fixed, as in papers that
  list an epsilon for this attack.

  References:
    Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks,
    2017, https://arxiv.org/abs/1608.04644, section 6.3.
  """
  ball = as_ball(epsilon, allowed=('linf',), attack='carlini_wagner_linf')
  check_range('const', const, 0, float('inf'), open_low=True)
  check_range('confidence', confidence, 0, float('inf'))
  rate = checked_step(learning_rate, ball.epsilon, num_steps, 'learning_rate')
  if learning_rate is None:
    rate = jnp.maximum(rate, _LINF_RATE * ball.epsilon)

  def init(
    keys: Keys, classifier: ClassifierLike, images: Images, labels: Labels
  ) -> LinfState:
    del keys, classifier  # Deterministic; the first step judges the clean ones.
    rows = labels.shape
    nothing = jnp.zeros_like(images)
    return LinfState(
      images=images,
      adam=Adam(nothing, nothing),
      kept=images,
      found=jnp.zeros(rows, bool),
      epsilon=spread('epsilon', ball.epsilon, rows),
      const=spread('const', const, rows),
      learning_rate=spread('learning_rate', rate, rows),
      confidence=spread('confidence', confidence, rows),
      steps=jnp.zeros(rows, jnp.int32),
      done=jnp.zeros(rows, bool),
    )

  def step(
    classifier: ClassifierLike, images: Images, labels: Labels, state: LinfState
  ) -> LinfState:
    def weighted(attacked: Images) -> tuple[Any, Any]:
      logits = classifier(attacked)
      missing, _ = const_search.hinge(
        logits, labels, state.confidence, targeted=targeted
      )
      hit = succeeded(logits, labels, targeted=targeted)
      return jnp.sum(state.const * missing), hit

    gradient, hit = jax.grad(weighted, has_aux=True)(state.images)
    move, adam = _adam(state.adam, gradient, state.steps, num_steps)
    delta = state.images - per_row(state.learning_rate, move) * move - images
    moved = jnp.clip(images + ball.project(delta, state.epsilon), 0, 1)
    new = state._replace(
      images=moved,
      adam=adam,
      kept=jnp.where(per_row(hit, images), state.images, state.kept),
      found=state.found | hit,
      steps=state.steps + 1,
      done=hit & (state.steps == 0),
    )
    return keep_done(state, new)

  def finish(
    classifier: ClassifierLike, images: Images, labels: Labels, state: LinfState
  ) -> AttackResult:
    del images
    last = succeeded(classifier(state.images), labels, targeted=targeted)
    earlier = (state.found & ~last) | state.done
    images = jnp.where(per_row(earlier, state.images), state.kept, state.images)
    return AttackResult(images, state.found | last)

  return Attack(init, step, finish, num_steps, targeted=targeted)
