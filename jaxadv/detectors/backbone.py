"""A detector on top of a pretrained network, its early part frozen.

The output of the frozen prefix is computed once for every picture and then
trained on; several detectors on one prefix train in one compiled step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.classifier import Classifier
from jaxadv.models import split_variables
from jaxadv.training import (
  FitResult,
  Task,
  TrainConfig,
  TrainState,
  classification,
  fit_members,
  measure_members,
  take_member,
)
from jaxadv.types import Batch, Detector, PyTree

HIDDEN = (1024, 1024, 512)


@dataclasses.dataclass(frozen=True)
class Design:
  """What kind of network a backbone detector is; compared by value.

  Attributes:
    module: The backbone, a Linen chain of stages (`jaxadv.models`).
    split: Its last frozen stage.
    features: Its last stage that the detector keeps.
    batch_norm: Whether BatchNorm after the split trains on the statistics of
      the batch. False keeps it in inference mode, as networks need whose
      published weights have BatchNorm folded into the convolutions.
    hidden: Widths of the dense layers before the output.
  """

  module: Any
  split: str
  features: str
  batch_norm: bool = True
  hidden: tuple[int, ...] = HIDDEN


class _Head(nn.Module):
  """Global average pooling, dense layers with ReLU, one logit."""

  hidden: tuple[int, ...]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = jnp.mean(x, axis=(1, 2))
    for width in self.hidden:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(1)(x)


@functools.cache
def _task(design: Design) -> Task:
  """Makes the training task; one a design, so that its loop compiles once.

  `data` holds 'features' [P, h, w, c], 'attacked' [E, P] and 'suffix', the
  pretrained variables that every detector starts from.
  """
  head = _Head(design.hidden)

  def init(key, data, member):
    del member
    suffix = data['suffix']
    features = jax.eval_shape(
      lambda x: _suffix(design, suffix, x, False)[0], data['features'][:1]
    )
    params = {
      'suffix': suffix['params'],
      'head': head.init(key, jnp.zeros(features.shape))['params'],
    }
    return {'params': params, 'batch_stats': suffix.get('batch_stats', {})}

  def gather(data, indices, member, key):
    del key
    return {
      'inputs': data['features'][indices],
      'labels': data['attacked'][member, indices],
    }

  def apply(variables, features, train, key):
    del key
    params = variables['params']
    suffix = {'params': params['suffix']}
    if variables['batch_stats']:
      suffix['batch_stats'] = variables['batch_stats']
    x, batch_stats = _suffix(design, suffix, features, train)
    return head.apply({'params': params['head']}, x), batch_stats

  return classification(init, apply, gather)


def _suffix(
  design: Design, suffix: PyTree, features: jax.Array, train: bool
) -> tuple[jax.Array, PyTree]:
  """Runs the stages between the split and the head."""
  x, updates = design.module.apply(
    suffix,
    features,
    train and design.batch_norm,
    start=design.split,
    stop=design.features,
    mutable=['batch_stats'],
  )
  return x, updates.get('batch_stats', suffix.get('batch_stats', {}))


def prefix_features(
  design: Design, classifier: Classifier, images: jax.Array
) -> jax.Array:
  """Computes the output of the frozen prefix; a pure function.

  Args:
    design: The detector's design.
    classifier: The backbone with its weights and preprocessing.
    images: float32[B, H, W, C] in [0, 1].

  Returns:
    float32[B, h, w, c].
  """
  prefix, _ = split_variables(design.module, classifier.variables, design.split)
  return design.module.apply(
    prefix, classifier.preprocess(images), stop=design.split
  )


def fit_detectors(
  keys: jax.Array,
  design: Design,
  classifier: Classifier,
  features: jax.Array,
  attacked: np.ndarray,
  train_rows: np.ndarray,
  valid_rows: np.ndarray,
  config: TrainConfig = TrainConfig(),
  **options: Any,
) -> FitResult:
  """Trains E detectors on one frozen prefix in one compiled program.

  Binary cross-entropy; the defaults of `config` are the paper's: Adam at
  1e-4, halved when the loss on the validation rows has not fallen for three
  epochs, 30 epochs, batches of 32.

  Args:
    keys: key[E]; a detector depends on its own key, labels and rows only.
    design: The design of all of them.
    classifier: The backbone with its weights, where all of them start.
    features: float32[P, h, w, c], `prefix_features` of a pool of pictures.
    attacked: bool[E, P], the labels that each detector learns.
    train_rows: int32[E, n], rows of the pool that each trains on.
    valid_rows: int32[E, m], rows that its learning rate is scheduled by.
    config: Epochs, batch size, optimizer and schedule.
    **options: As of `jaxadv.training.fit_members` (mesh, checkpoints, ...).

  Returns:
    The stacked states and histories.

  References:
    Agarwal et al., Exploring Robustness Connection between Artificial and
    Natural Adversarial Examples, CVPR workshops 2022, section 4.
  """
  _, rest = split_variables(design.module, classifier.variables, design.split)
  suffix, _ = split_variables(design.module, rest, design.features)
  data = {
    'features': features,
    'attacked': jnp.asarray(attacked, jnp.int32),
    'suffix': suffix,
  }
  return fit_members(
    keys, _task(design), data, train_rows, valid_rows, config, **options
  )


def score_detectors(
  design: Design,
  state: TrainState,
  features: jax.Array,
  *,
  batch_size: int = 256,
  **options: Any,
) -> np.ndarray:
  """Scores a pool of pictures with E detectors.

  Args:
    design: Their design.
    state: Their stacked states, from `fit_detectors`.
    features: float32[P, h, w, c], `prefix_features` of the pool.
    batch_size: Pictures at a time.
    **options: As of `jaxadv.training.measure_members` (mesh, how).

  Returns:
    float32[E, P] logits, higher means more likely attacked.
  """
  num_members, num_rows = state.step.shape[0], features.shape[0]
  data = {
    'features': features,
    'attacked': jnp.zeros((num_members, num_rows), jnp.int32),
  }
  found = measure_members(
    _task(design),
    state,
    data,
    np.arange(num_rows),
    batch_size=batch_size,
    **options,
  )
  return found['logits'][..., 0]


def backbone_detector(
  design: Design, config: TrainConfig = TrainConfig()
) -> Detector:
  """Makes the detector of one network and one pool of attacked pictures.

  Args:
    design: The detector's design; the classifier that `fit` and `score` are
      given is the backbone with its weights.
    config: Epochs, batch size, optimizer and schedule.

  Returns:
    A `Detector`; whatever is not of kind 0 counts as attacked. Scores are
    logits. Its `score` is differentiable and needs no surrogate.

  Example:
    >>> detector = backbone_detector(Design(module, 'block3', 'block5'))
    >>> state = detector.fit(key, classifier, train, valid)
    >>> scores = detector.score(None, classifier, state, images)
  """

  def fit(
    key: jax.Array,
    classifier: Classifier,
    train: Iterable[Batch],
    valid: Iterable[Batch],
  ) -> TrainState:
    prefix = jax.jit(functools.partial(prefix_features, design))
    pools = [
      (prefix(classifier, batch.images)[batch.mask], batch.kind[batch.mask])
      for batches in (train, valid)
      for batch in batches
    ]
    num_train = sum(int(batch.mask.sum()) for batch in train)
    features = jnp.concatenate([features for features, _ in pools])
    attacked = jnp.concatenate([kind for _, kind in pools]) != 0
    rows = np.arange(len(attacked))
    result = fit_detectors(
      key[None],
      design,
      classifier,
      features,
      np.asarray(attacked)[None],
      rows[:num_train],
      rows[num_train:],
      config,
    )
    return take_member(result.state, 0)

  def score(
    keys: jax.Array | None,
    classifier: Classifier,
    state: TrainState,
    images: jax.Array,
  ) -> jax.Array:
    del keys  # Nothing in it is random.
    features = prefix_features(design, classifier, images)
    return _task(design).measure(
      state.params,
      state.batch_stats,
      {'inputs': features, 'labels': jnp.zeros(len(images), jnp.int32)},
    )['logits'][:, 0]

  return Detector(fit, score)
