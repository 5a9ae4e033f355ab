"""The gradient of the loss with respect to the picture, and a network on it.

Attacks of minimal norm stop just past the decision boundary, where the loss
changes fast; clean pictures mostly lie where it hardly changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.detectors.feature_network import (
  RECIPE,
  Features,
  Scale,
  feature_detector,
)
from jaxadv.errors import DataError, UserError
from jaxadv.inputs import as_floating
from jaxadv.losses import logit_of
from jaxadv.norms import l2, linf, per_row
from jaxadv.training import TrainConfig
from jaxadv.types import ClassifierLike, Detector, Images, Logits


class Sensitivity(NamedTuple):
  """How the loss of pictures changes with them.

  Attributes:
    maps: float32[B, H, W, C], the gradient of the cross-entropy (in nats)
      towards the predicted class, in image units.
    norm: float32[B], S, the L2 norm of every map.
  """

  maps: jax.Array
  norm: jax.Array


def log_odds_against(logits: Logits) -> jax.Array:
  """The logarithm of (1 - p) / p, where p is the largest probability.

  The cross-entropy towards the predicted class is log(1 + exp(this)), and
  1 - p is its sigmoid. Neither rounds to 0 where p rounds to 1, as they would
  if computed from p.

  Args:
    logits: float32[B, K], K at least 2.

  Returns:
    float32[B], at most log(K - 1).

  Raises:
    UserError: If there are fewer than 2 classes.
  """
  num_classes = logits.shape[-1]
  if num_classes < 2:
    raise UserError(
      f'the classifier has {num_classes} logit a picture but needs at least 2 '
      'for one class to be opposed to others; give it one for each class'
    )
  label = jnp.argmax(logits, axis=-1)
  is_label = jax.nn.one_hot(label, num_classes, dtype=bool)
  others = jnp.where(is_label, -jnp.inf, logits)
  largest = jax.lax.stop_gradient(jnp.max(others, axis=-1, keepdims=True))
  # The barrier for the reason that `losses.cross_entropy` gives.
  shifted = jax.lax.optimization_barrier(others - largest)
  rest = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
  return rest + (largest[:, 0] - logit_of(logits, label))


def input_sensitivity(
  classifier: ClassifierLike, images: Images
) -> Sensitivity:
  """Computes gradient maps and their norms in one batched backward pass.

  Args:
    classifier: Any deterministic classifier of at least 2 classes.
    images: float32[B, H, W, C] in [0, 1].

  Returns:
    `(maps, norm)`; both are exact where the softmax saturates, until they
    leave the range of float32.

  Raises:
    UserError: If there are fewer than 2 classes.

  References:
    Li et al., Are L2 Adversarial Examples Intrinsically Different?, 2020,
    section 3.
  """
  odds, directions = _directions(classifier, images)
  doubt = jax.nn.sigmoid(odds)
  maps = per_row(doubt, directions) * directions
  return Sensitivity(maps, doubt * l2(directions))


def log_input_sensitivity(
  classifier: ClassifierLike, images: Images
) -> jax.Array:
  """Computes the logarithm of S, also where S itself would underflow.

  Args:
    classifier: As of `input_sensitivity`.
    images: float32[B, H, W, C] in [0, 1].

  Returns:
    float32[B].

  Raises:
    UserError: If there are fewer than 2 classes.
  """
  odds, directions = _directions(classifier, images)
  return jax.nn.log_sigmoid(odds) + jnp.log(l2(directions))


def _directions(
  classifier: ClassifierLike, images: Images
) -> tuple[jax.Array, jax.Array]:
  """The log odds and their gradient, which does not vanish with 1 - p.

  So its squares do not underflow, and its norm needs no second pass.
  """

  def total(images: Images) -> tuple[jax.Array, jax.Array]:
    odds = log_odds_against(classifier(images))
    return jnp.sum(odds), odds

  images = jnp.asarray(as_floating(images))
  directions, odds = jax.grad(total, has_aux=True)(images)
  return odds, directions


def _length(maps: jax.Array) -> jax.Array:
  """The L2 norm of every row, also where squares would underflow."""
  largest = jax.lax.stop_gradient(linf(maps))
  largest = jnp.where(largest > 0, largest, 1)
  return largest * l2(maps / per_row(largest, maps))


def unit_size(maps: jax.Array) -> Scale:
  """Gives the one factor that makes the mean size of a map 1.

  Args:
    maps: float32[N, H, W, C].

  Returns:
    The scale, without a shift. The size of a map is the root mean square of
    its entries, its L2 norm divided by the root of their number.

  Raises:
    DataError: If all maps are 0.
  """
  return _one_factor(maps, jnp.mean)


def _median_size(maps: jax.Array) -> Scale:
  """The same with the median, which half of the maps do not decide."""
  return _one_factor(maps, jnp.median)


def _one_factor(maps: jax.Array, average: Callable[..., jax.Array]) -> Scale:
  lengths = _length(maps)
  size = average(lengths) / maps[0].size ** 0.5
  # The median is 0 if most maps are: those of pictures far from the boundary.
  if not size > 0 and lengths.any():
    size = average(lengths[lengths > 0]) / maps[0].size ** 0.5
  factor = np.float32(1) / size
  if not np.isfinite(factor):
    raise DataError(
      f'the gradient maps of all {len(maps)} training pictures are 0 or vanish '
      'in float32, so that a detector has nothing to see in them; look at the '
      'gradient of the classifier, or choose a detector on pixels'
    )
  return Scale(
    jnp.zeros(maps.shape[-1], jnp.float32),
    jnp.full(maps.shape[-1], factor, jnp.float32),
  )


def _squash(values: jax.Array) -> jax.Array:
  return jnp.sign(values) * jnp.log1p(jnp.abs(values))


def _maps(classifier: ClassifierLike, images: Images) -> jax.Array:
  return input_sensitivity(classifier, images).maps


FEATURES = {
  'linear': Features(_maps, unit_size),
  # Half of the maps may be a millionth of the others: not their mean.
  'log': Features(_maps, _median_size, _squash),
}


def input_sensitivity_detector(
  module: nn.Module,
  config: TrainConfig = RECIPE,
  *,
  scaling: Literal['linear', 'log'] = 'linear',
  beta: float | None = 10.0,
  **options: Any,
) -> Detector:
  """Makes a detector of a network on gradient maps (DET_IS).

  The maps are those of `input_sensitivity`, brought to unit size by one
  constant of the training set: dividing each by its own norm would remove
  what the detector is about.

  Args:
    module: As of `feature_detector`.
    config: Epochs, batch size, optimizer and schedule.
    scaling: 'linear', the map g times a constant, so that the mean root mean
      square is 1; or 'log', `sign(g) log(1 + |g| / c)` with c the median root
      mean square, which also shows differences among tiny gradients.
    beta: Sharpness of the softplus in place of the classifier's ReLU in the
      gradient of `surrogate`, above 0; None for no surrogate.
    **options: As of `jaxadv.training.fit` (mesh, checkpoints, ...).

  Returns:
    A `Detector`; scores are logits. The gradient of `score` is of second
    order and for the most part masked, since ReLU has no second derivative;
    that of `surrogate`, whose values are the same, is not.

  Raises:
    UserError: If the scaling is unknown.

  Departs from the paper: the constant and the surrogate, of which it says
  nothing.

  References:
    Li et al., Are L2 Adversarial Examples Intrinsically Different?, 2020,
    section 3.
  """
  if scaling not in FEATURES:
    raise UserError(
      f'scaling is {scaling!r} but must be one of {", ".join(FEATURES)}'
    )
  return feature_detector(
    FEATURES[scaling], module, config, beta=beta, **options
  )
