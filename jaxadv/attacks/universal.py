"""One perturbation for all pictures, and how such things are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxadv import losses
from jaxadv.attacks.inputs import attack_inputs, check_classifier
from jaxadv.attacks.wrap import one_shot
from jaxadv.classifier import as_classifier
from jaxadv.errors import DataError, UserError
from jaxadv.inputs import as_float, as_key
from jaxadv.norms import Ball, Radius, as_ball, checked_step
from jaxadv.types import (
  Attack,
  ClassifierLike,
  Images,
  Keys,
  Labels,
  PyTree,
  bound,
  picture_keys,
)
from jaxadv.utils import check_range, check_whole


def over_batches(
  update: Callable[..., PyTree],
  start: PyTree,
  key: jax.Array,
  classifier: ClassifierLike,
  images: ArrayLike,
  labels: ArrayLike,
  *,
  num_epochs: int,
  batch_size: int,
) -> PyTree:
  """Improves a value on batches of a set that lies on the device.

  All epochs are one compiled loop. Every epoch has an order of its own and
  leaves out the pictures that do not fill a last batch.

  Args:
    update: `(value, keys, classifier, images, labels) -> value`, with
      pictures as float32 and a key for each.
    start: The first value.
    key: Decides the order and what `update` and a stochastic classifier draw.
    classifier: The classifier under attack.
    images: [N, H, W, C], uint8 or floating in [0, 1].
    labels: int[N], classes of the classifier.
    num_epochs: How often every picture is seen, at least 1.
    batch_size: Pictures at a time, at least 1; all of them if there are fewer.

  Returns:
    The last value.

  Raises:
    UserError: If a number is below 1, pictures or labels are not as above, or
      the classifier cannot be attacked; see `evaluate`.
    DataError: If a picture or the classifier has a NaN, or the value gets one.
  """
  check_whole('num_epochs', num_epochs, 1)
  check_whole('batch_size', batch_size, 1)
  key, classifier = as_key(key), as_classifier(classifier)
  inputs = attack_inputs(images, labels)
  check_classifier(classifier, key, inputs)
  num = len(inputs.labels)
  batch_size = min(batch_size, num)
  per_epoch = num // batch_size

  @jax.jit
  def run(
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    key: jax.Array,
    start: PyTree,
  ) -> PyTree:
    def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
      value, key = carry
      batch = as_float(images[rows])
      keys = picture_keys(key, rows)
      now = bound(classifier, keys, 0)
      return (update(value, keys, now, batch, labels[rows]), key), None

    def epoch(value: PyTree, index: jax.Array) -> tuple[PyTree, None]:
      key_order, key_draws = jax.random.split(jax.random.fold_in(key, index))
      order = jax.random.permutation(key_order, num)
      batches = order[: per_epoch * batch_size].reshape(per_epoch, batch_size)
      (value, _), _ = jax.lax.scan(step, (value, key_draws), batches)
      return value, None

    return jax.lax.scan(epoch, start, jnp.arange(num_epochs))[0]

  found = run(classifier, inputs.images, inputs.labels, key, start)
  if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)):
    raise DataError(
      f'{num_epochs} epochs gave NaN or infinity; look at the outputs of the '
      'classifier, or take a smaller step'
    )
  return found


def universal_perturbation(
  key: jax.Array,
  classifier: ClassifierLike,
  images: ArrayLike,
  labels: ArrayLike,
  ball: Ball | Radius,
  *,
  step_size: Radius | None = None,
  num_epochs: int = 10,
  batch_size: int = 128,
  targeted: bool = False,
  largest_loss: float = 9.0,
) -> jax.Array:
  """Trains one perturbation that fools the classifier on most pictures.

  Each step moves the perturbation along the steepest direction of the mean
  loss of a batch and projects it onto the ball. The cross-entropy of a
  picture counts up to `largest_loss` only: it has no upper bound, and few
  pictures that are fooled long since would decide the direction.

  This is the gradient form, which the field uses today in place of the first
  one (Moosavi-Dezfooli et al., 2017): that adds up a DeepFool run for every
  picture, one picture after the other, and is both slower and weaker.

  Args:
    key: Decides the order of the pictures.
    classifier: The classifier under attack.
    images: [N, H, W, C], uint8 or floating in [0, 1].
    labels: int[N], the true classes, or the classes to reach.
    ball: `linf_ball(epsilon)` or any other, its radius a scalar; a number is
      the radius in Linf.
    step_size: Length of a step in image units and in the ball's norm, above
      0; None for `norms.usual_step`.
    num_epochs: How often every picture is seen, at least 1.
    batch_size: Pictures at a time.
    targeted: Whether `labels` name the classes to reach; the loss is then
      lowered, and not bounded.
    largest_loss: In nats, above 0.

  Returns:
    float32[H, W, C], a point of the ball; see `apply_delta`.

  Raises:
    UserError: If an argument has the wrong shape or range, or the classifier
      cannot be attacked; see `evaluate`.
    DataError: If a picture or the classifier has a NaN.

  Departs from the paper: steps of fixed length in the ball's steepest
  direction, where the paper has those of an optimiser too; the default bound
  of the loss is ours.

  References:
    Shafahi et al., Universal Adversarial Training, 2020,
    https://arxiv.org/abs/1811.11304, section 3, algorithm 2.
  """
  check_range('largest_loss', largest_loss, 0, float('inf'), open_low=True)
  check_whole('num_epochs', num_epochs, 1)
  check_whole('batch_size', batch_size, 1)
  ball = as_ball(ball)
  num_steps = num_epochs * max(np.size(labels) // batch_size, 1)
  step_size = checked_step(step_size, ball.epsilon, num_steps)
  epsilon = jnp.full(1, ball.epsilon, jnp.float32)

  def update(
    delta: jax.Array,
    keys: Keys,
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
  ) -> jax.Array:
    del keys  # Nothing is drawn.

    def gain(delta: jax.Array) -> jax.Array:
      logits = classifier(jnp.clip(images + delta, 0, 1))
      loss = losses.cross_entropy(logits, labels)
      return (
        -loss.mean() if targeted else jnp.minimum(loss, largest_loss).mean()
      )

    direction = ball.steepest(jax.grad(gain)(delta))
    return ball.project(delta + step_size * direction, epsilon)

  start = jnp.zeros((1, *np.shape(images)[1:]), jnp.float32)
  return over_batches(
    update,
    start,
    key,
    classifier,
    images,
    labels,
    num_epochs=num_epochs,
    batch_size=batch_size,
  )[0]


def apply_delta(delta: ArrayLike, *, targeted: bool = False) -> Attack:
  """Adds the same perturbation to every picture.

  Args:
    delta: [H, W, C] or what broadcasts to it, floating, in [-1, 1]; see
      `universal_perturbation`.
    targeted: Whether `labels` name the classes to reach.

  Returns:
    A one-shot `Attack` that clips to [0, 1].

  Raises:
    UserError: If the dtype or range of delta is another one, or (once called)
      its shape.
    DataError: If it holds NaN.
  """
  delta = jnp.asarray(delta)
  if not jnp.issubdtype(delta.dtype, jnp.floating):
    raise UserError(
      f'delta is {delta.dtype} but must be floating, in [-1, 1]; divide grey '
      'levels by 255'
    )
  if not isinstance(delta, jax.core.Tracer):
    largest = np.abs(np.asarray(delta, np.float32)).max(initial=0)
    if np.isnan(largest):
      raise DataError('delta holds NaN')
    if largest > 1 + 1e-6:
      raise UserError(
        f'delta goes up to {largest:g} but must lie in [-1, 1]; divide grey '
        'levels by 255'
      )
  delta = delta.astype(jnp.float32)

  def perturb(keys: Keys, images: Images) -> Images:
    del keys
    shape = images.shape[1:]
    try:
      fits = np.broadcast_shapes(delta.shape, shape) == shape
    except ValueError:
      fits = False
    if not fits:
      raise UserError(
        f'delta has the shape {delta.shape} but the pictures {shape}'
      )
    return jnp.clip(images + delta, 0, 1)

  return one_shot(perturb, targeted=targeted)
