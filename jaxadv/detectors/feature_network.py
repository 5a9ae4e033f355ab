"""Detectors that are one network on features of a picture.

What tells them apart is a function `(classifier, images) -> features`: the
pixels themselves, the gradient of the loss, pixels beside a saliency map. The
network, its training and its early stopping are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxadv import training
from jaxadv.classifier import as_pytree, identity
from jaxadv.errors import UserError
from jaxadv.models.layers import smooth_relu
from jaxadv.training import Task, TrainConfig
from jaxadv.training.frozen import pool_rows
from jaxadv.types import (
  Batch,
  Detector,
  Images,
  Keys,
  PyTree,
  ScorePictures,
  Scores,
  make_detector,
)

RECIPE = TrainConfig(
  num_epochs=20, batch_size=128, learning_rate=1e-4, schedule='constant'
)

Compute = Callable[[Any, jax.Array], jax.Array]


class Scale(NamedTuple):
  """Constants, fixed on the training rows, that bring features to unit size.

  Constants of a set, not of a picture: the size of a gradient map is what
  tells attacked pictures from clean ones.

  Attributes:
    shift: float32[C], subtracted.
    factor: float32[C], multiplied afterwards.
  """

  shift: jax.Array
  factor: jax.Array


class Features(NamedTuple):
  """What a network detector looks at.

  Attributes:
    compute: `(classifier, images) -> float32[B, H, W, C]`, pure.
    fit_scale: `features -> Scale`, from those of the training rows.
    squash: Applied after scaling, elementwise.
  """

  compute: Compute
  fit_scale: Callable[[jax.Array], Scale]
  squash: Callable[[jax.Array], jax.Array] = identity


class FeatureState(NamedTuple):
  """What a network detector has learnt.

  Attributes:
    scale: Of the features.
    variables: `{'params': ..., 'batch_stats': ...}` of the network.
  """

  scale: Scale
  variables: dict[str, PyTree]


def with_smooth_gradient(compute: Compute, beta: float) -> Compute:
  """Gives features that depend on gradients a useful gradient of their own.

  Their values do not change. Their derivatives are those of the same features
  of a network with softplus in place of ReLU.

  Args:
    compute: `(classifier, images) -> features`.
    beta: Sharpness of the softplus, see `jaxadv.models.layers.smooth_relu`,
      which also says which networks it acts on.

  Returns:
    A function of the same form, of about twice the cost.

  References:
    Athalye et al., Obfuscated Gradients Give a False Sense of Security, 2018,
    https://arxiv.org/abs/1802.00420, section 4.1 (another function backward).
  """

  def computed(classifier: Any, images: Images) -> jax.Array:
    with smooth_relu(beta):
      smooth = compute(classifier, images)
    exact = compute(classifier, jax.lax.stop_gradient(images))
    return exact + (smooth - jax.lax.stop_gradient(smooth))  # Adds exactly 0.

  return computed


def feature_detector(
  features: Features,
  module: nn.Module,
  config: TrainConfig = RECIPE,
  *,
  beta: float | None = None,
  **options: Any,
) -> Detector:
  """Makes a detector of a network on features, trained from scratch.

  Binary cross-entropy on clean against all other kinds; of all epochs it
  keeps the weights of the one with the largest AUC on the validation rows
  (the paper does not say how its detectors are trained). The features of all
  rows are computed once and stay on the device, in float32.

  Args:
    features: What the network looks at.
    module: Called as `module(inputs, train=...)`, one logit a row: a backbone
      of `jaxadv.models` with `num_classes=1`. It takes as many channels as
      the features have.
    config: Epochs, batch size, optimizer and schedule.
    beta: Sharpness of the softplus that stands in for the classifier's ReLU
      in the gradient of `surrogate`; None for no surrogate.
    **options: As of `jaxadv.training.fit` (mesh, checkpoints, ...).

  Returns:
    A `Detector`; scores are logits, differentiable. The surrogate has the
    value of the score. `fit` raises `UserError` if the training or the
    validation rows are not both clean and attacked.
  """
  compute_all = jax.jit(features.compute)

  def fit(
    key: jax.Array,
    classifier: Any,
    train: Iterable[Batch],
    valid: Iterable[Batch],
  ) -> FeatureState:
    pool, kinds, train_rows, valid_rows = pool_rows(
      compute_all, as_pytree(classifier), train, valid
    )
    attacked = kinds != 0
    for name, rows in ('training', train_rows), ('validation', valid_rows):
      if attacked[rows].all() or not attacked[rows].any():
        raise UserError(
          f'the {len(rows)} {name} rows are all '
          f'{"attacked" if attacked[rows].all() else "clean"}; a detector '
          'needs both kinds there'
        )
    scale = features.fit_scale(pool[: len(train_rows)])
    data = {
      'images': _inputs(features, scale, pool),
      'labels': jnp.asarray(attacked, jnp.int32),
    }
    result = training.fit(
      key, _task(module), data, train_rows, valid_rows, config, **options
    )
    return FeatureState(scale, result.state.variables)

  def score_by(compute: Compute) -> ScorePictures:
    def score(
      keys: Keys | None,
      classifier: Any,
      state: FeatureState,
      images: Images,
    ) -> Scores:
      del keys  # Nothing in it is random.
      inputs = _inputs(features, state.scale, compute(classifier, images))
      logits: Any = module.apply(state.variables, inputs)
      return logits[:, 0]

    return score

  surrogate = None
  if beta is not None:
    surrogate = score_by(with_smooth_gradient(features.compute, beta))
  return make_detector(fit, score_by(features.compute), surrogate)


def _inputs(features: Features, scale: Scale, found: jax.Array) -> jax.Array:
  if found.shape[-1:] != scale.shift.shape:
    # A single channel would be broadcast.
    raise UserError(
      f'the pictures give features of {found.shape[-1]} channels, but the '
      f'detector has learnt from {len(scale.shift)}; give it pictures with as '
      'many channels as those that it was fitted on'
    )
  return features.squash((found - scale.shift) * scale.factor)


@functools.cache
def _task(module: nn.Module) -> Task:
  """Makes the training task; one a network, so that its loop compiles once."""

  def init(key: jax.Array, data: Any, member: Any) -> PyTree:
    del member
    return module.init(key, data['images'][:1])

  task = training.classification(
    init, training.linen_apply(module), training.gather_images()
  )

  def measure(params: PyTree, batch_stats: PyTree, examples: Any) -> Any:
    found = task.measure(params, batch_stats, examples)
    return found | {'attacked': examples['labels'][:, None] > 0}

  def selection_metric(measured: Any) -> jax.Array:
    return _auc(measured['logits'][:, 0], measured['attacked'][:, 0])

  return task._replace(measure=measure, selection_metric=selection_metric)


def _auc(scores: jax.Array, positive: jax.Array) -> jax.Array:
  """`jaxadv.metrics.roc.auc` of finite scores, inside `jit`."""
  clean = jnp.sort(jnp.where(positive, jnp.inf, scores))
  below, up_to = (
    jnp.searchsorted(clean, scores, side=side) for side in ('left', 'right')
  )
  wins = jnp.where(positive, below + up_to, 0) / 2 / jnp.sum(~positive)
  return jnp.sum(wins) / jnp.sum(positive)
