"""A pretrained network with its early part frozen and a new head on top.

The output of the frozen prefix is computed once for every picture and then
trained on; several networks on one prefix train in one compiled step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.classifier import Classifier
from jaxadv.errors import DataError, UserError
from jaxadv.inputs import as_float, check_numbers
from jaxadv.models import split_variables
from jaxadv.training.loop import FitResult, fit_members, measure_members
from jaxadv.training.state import TrainConfig, TrainState
from jaxadv.training.tasks import Task, classification
from jaxadv.types import Batch, PyTree

HIDDEN = (1024, 1024, 512)


@dataclasses.dataclass(frozen=True)
class Design:
  """A backbone whose suffix and new head are trained; compared by value.

  Attributes:
    module: The backbone, a Linen chain of stages (`jaxadv.models`).
    frozen_until: Its last frozen stage.
    last_stage: The last of its stages that are kept.
    batch_norm: Whether BatchNorm after the frozen stages trains on the
      statistics of the batch. False keeps it in inference mode, as networks
      need whose published weights have BatchNorm folded into the convolutions.
    hidden: Widths of the dense layers before the output; the default is that of
      Agarwal et al. (2022), section 4.
  """

  module: Any
  frozen_until: str
  last_stage: str
  batch_norm: bool = True
  hidden: tuple[int, ...] = HIDDEN


class _Head(nn.Module):
  """Global average pooling, dense layers with ReLU, logits."""

  hidden: tuple[int, ...]
  num_outputs: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = jnp.mean(x, axis=(1, 2))
    for width in self.hidden:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(self.num_outputs)(x)


@functools.cache
def task(design: Design, num_outputs: int) -> Task:
  """Makes the training task; one a design, so that its loop compiles once.

  Args:
    design: The network.
    num_outputs: Logits: 1 for two classes told apart by a sigmoid, else one a
      class.

  Returns:
    A task whose data hold 'features' [P, h, w, c] of any float type, 'labels'
    int32[E, P], 'weights' float32[E, K] of the losses of the classes, and
    'suffix', the pretrained variables that every member starts from.
  """
  head = _Head(design.hidden, num_outputs)

  def init(key, data, member):
    del member
    suffix = data['suffix']
    features = jax.eval_shape(
      lambda x: _suffix(design, suffix, x, False)[0],
      data['features'][:1].astype(jnp.float32),
    )
    params = {
      'suffix': suffix['params'],
      'head': head.init(key, jnp.zeros(features.shape, jnp.float32))['params'],
    }
    return {'params': params, 'batch_stats': suffix.get('batch_stats', {})}

  def gather(data, indices, member, key):
    del key
    labels = data['labels'][member, indices]
    return {
      # They may be kept in bfloat16.
      'inputs': data['features'][indices].astype(jnp.float32),
      'labels': labels,
      'weights': data['weights'][member, labels],
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
  """Runs the stages between the frozen ones and the head."""
  x, updates = design.module.apply(
    suffix,
    features,
    train and design.batch_norm,
    start=design.frozen_until,
    stop=design.last_stage,
    mutable=['batch_stats'],
  )
  _check_size(x, design.last_stage)
  return x, updates.get('batch_stats', suffix.get('batch_stats', {}))


def _check_size(maps: jax.Array, stage: str) -> None:
  """Refuses maps without pixels, whose mean would be NaN."""
  if 0 in maps.shape:
    raise UserError(
      f'the pictures are too small for the network: nothing of them is left at '
      f'its stage {stage}; give larger ones, or put Resized before the network'
    )


def prefix_features(
  design: Design, classifier: Classifier, images: jax.Array
) -> jax.Array:
  """Computes the output of the frozen prefix; a pure function.

  Args:
    design: The network.
    classifier: The backbone with its weights and preprocessing.
    images: [B, H, W, C], uint8 or floating in [0, 1].

  Returns:
    float32[B, h, w, c].

  Raises:
    UserError: If the pictures are too small for the prefix.
  """
  prefix, _ = split_variables(
    design.module, classifier.variables, design.frozen_until
  )
  features: jax.Array = design.module.apply(
    prefix, classifier.preprocess(as_float(images)), stop=design.frozen_until
  )
  _check_size(features, design.frozen_until)
  return features.astype(jnp.float32)


def fit_heads(
  keys: jax.Array,
  design: Design,
  classifier: Classifier,
  features: jax.Array,
  labels: np.ndarray,
  train_rows: np.ndarray,
  valid_rows: np.ndarray,
  config: TrainConfig,
  *,
  num_outputs: int = 1,
  weights: np.ndarray | None = None,
  **options: Any,
) -> FitResult:
  """Trains E suffixes with their heads on one frozen prefix.

  Args:
    keys: key[E]; a member depends on its own key, labels and rows only.
    design: The design of all of them.
    classifier: The backbone with its weights, where all of them start.
    features: float32[P, h, w, c], `prefix_features` of a pool of pictures.
    labels: int32[E, P], the classes that each learns.
    train_rows: int32[E, n], rows of the pool that each trains on.
    valid_rows: int32[E, m], rows that its learning rate is scheduled by.
    config: Epochs, batch size, optimizer and schedule.
    num_outputs: As of `task`.
    weights: float32[E, K], of the losses of the classes; all 1 if None.
    **options: As of `fit_members` (mesh, checkpoints, ...).

  Returns:
    The stacked states and histories.
  """
  _, rest = split_variables(
    design.module, classifier.variables, design.frozen_until
  )
  suffix, _ = split_variables(design.module, rest, design.last_stage)
  if weights is None:
    weights = np.ones((keys.shape[0], max(num_outputs, 2)))
  data = {
    'features': features,
    'labels': jnp.asarray(labels, jnp.int32),
    'weights': jnp.asarray(weights, jnp.float32),
    # Trained in float32, whatever the network is in.
    'suffix': jax.tree.map(lambda leaf: leaf.astype(jnp.float32), suffix),
  }
  return fit_members(
    keys,
    task(design, num_outputs),
    data,
    train_rows,
    valid_rows,
    config,
    **options,
  )


def pool_logits(
  design: Design,
  state: TrainState,
  features: jax.Array,
  *,
  num_outputs: int = 1,
  batch_size: int = 256,
  **options: Any,
) -> np.ndarray:
  """Applies E trained networks to a pool of pictures.

  Args:
    design: Their design.
    state: Their stacked states, from `fit_heads`.
    features: float32[P, h, w, c], `prefix_features` of the pool.
    num_outputs: As they were trained with.
    batch_size: Pictures at a time.
    **options: As of `measure_members` (mesh, member_mode).

  Returns:
    float32[E, P, num_outputs].

  Raises:
    UserError: As `measure_members`.
    DataError: If one of them is NaN, or as `measure_members`.
  """
  num_members, num_rows = state.step.shape[0], features.shape[0]
  data = {
    'features': features,
    'labels': jnp.zeros((num_members, num_rows), jnp.int32),
    'weights': jnp.ones((num_members, 1), jnp.float32),
  }
  found = measure_members(
    task(design, num_outputs),
    state,
    data,
    np.arange(num_rows),
    batch_size=batch_size,
    **options,
  )
  check_numbers(found['logits'].swapaxes(0, 1), 'logits of pictures')
  return found['logits']


def picture_logits(
  design: Design,
  classifier: Classifier,
  state: TrainState,
  images: jax.Array,
  *,
  num_outputs: int = 1,
) -> jax.Array:
  """Applies one trained network to pictures; a pure function.

  Args:
    design: Its design.
    classifier: The backbone that it was trained on.
    state: Its state, one member of `fit_heads`.
    images: float32[B, H, W, C] in [0, 1].
    num_outputs: As it was trained with.

  Returns:
    float32[B, num_outputs], differentiable.
  """
  examples = {
    'inputs': prefix_features(design, classifier, images),
    'labels': jnp.zeros(len(images), jnp.int32),
  }
  return task(design, num_outputs).measure(
    state.params, state.batch_stats, examples
  )['logits']


def pooled(
  design: Design,
  classifier: Classifier,
  train: Iterable[Batch],
  valid: Iterable[Batch],
) -> tuple[jax.Array, np.ndarray, np.ndarray, np.ndarray]:
  """Lays the rows of batches out as a pool, without padding.

  Args:
    design: The network.
    classifier: The backbone with its weights.
    train: Batches to train on.
    valid: Batches to schedule the learning rate by.

  Returns:
    `prefix_features` of all rows, their kinds int32[P], and the rows to train
    and to validate on.
  """
  prefix = jax.jit(functools.partial(prefix_features, design))
  return pool_rows(prefix, classifier, train, valid)


def pool_rows(
  compute: Callable[[Any, jax.Array], jax.Array],
  classifier: Any,
  train: Iterable[Batch],
  valid: Iterable[Batch],
) -> tuple[jax.Array, np.ndarray, np.ndarray, np.ndarray]:
  """Lays the rows of batches out as a pool, as `pooled`, of any features.

  Args:
    compute: `(classifier, images) -> features`, compiled.
    classifier: What `compute` is given.
    train: Batches to train on.
    valid: Batches to validate on.

  Returns:
    The features of all rows, their kinds int32[P], and the rows to train and
    to validate on.

  Raises:
    UserError: If there are no rows to train or to validate on.
    DataError: If features are not finite; names the picture.
  """
  features, kinds, counts = [], [], []
  for name, batches in ('training', train), ('validation', valid):
    count = 0
    for batch in batches:
      mask = np.asarray(batch.mask)
      found = compute(classifier, batch.images)
      broken = mask & ~np.asarray(_is_finite(found))
      if broken.any():
        raise DataError(
          'what the detector looks at is not finite for the '
          f'{name} picture of source {np.asarray(batch.source)[broken][0]} and '
          f'{broken.sum() - 1} others of its batch; look at the logits and '
          'gradients of the classifier there'
        )
      features.append(found[mask])
      kinds.append(np.asarray(batch.kind)[mask])
      count += len(kinds[-1])
    if not count:
      raise UserError(f'there are no {name} pictures; give at least one')
    counts.append(count)
  rows = np.arange(sum(counts))
  return (
    jnp.concatenate(features),
    np.concatenate(kinds),
    rows[: counts[0]],
    rows[counts[0] :],
  )


@jax.jit
def _is_finite(features: jax.Array) -> jax.Array:
  return jnp.isfinite(features).all(axis=tuple(range(1, features.ndim)))
