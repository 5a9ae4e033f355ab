"""N+1-way supervision: one network for clean pictures and N kinds of attack.

The network of the backbone detectors with a softmax over N + 1 classes. A
picture counts as attacked if its most likely class is not the clean one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from scipy.special import logsumexp

from jaxadv.classifier import Classifier
from jaxadv.errors import UserError
from jaxadv.training import FitResult, TrainConfig, TrainState, take_member
from jaxadv.training.frozen import (
  Design,
  fit_heads,
  picture_logits,
  pool_logits,
  pooled,
)
from jaxadv.types import Batch, Identifier, Images, Keys, make_identifier


def class_weights(classes: np.ndarray, num_classes: int) -> np.ndarray:
  """Weighs classes so that clean and attacked pictures count the same.

  Clean pictures make up half of the loss, and each of the N kinds 1/(2 N),
  however many pictures of it there are.

  Args:
    classes: int[n], 0 for clean, 1 to N for the kinds.
    num_classes: N + 1.

  Returns:
    float32[N + 1] that multiply the losses; their mean over `classes` is 1.

  Raises:
    UserError: If a class has no picture.
  """
  counts = np.bincount(classes, minlength=num_classes)
  if len(counts) > num_classes or not counts.all():
    raise UserError(
      f'the classes have {counts.tolist()} training pictures; give some of '
      f'each of the {num_classes}, the clean ones first'
    )
  shares = np.full(num_classes, 0.5 / (num_classes - 1))
  shares[0] = 0.5
  return (shares * len(classes) / counts).astype(np.float32)


def fit_identifiers(
  keys: jax.Array,
  design: Design,
  classifier: Classifier,
  features: jax.Array,
  classes: np.ndarray,
  train_rows: np.ndarray,
  valid_rows: np.ndarray,
  config: TrainConfig = TrainConfig(),
  *,
  num_classes: int,
  **options: Any,
) -> FitResult:
  """Trains E identifiers on one frozen prefix in one compiled program.

  Cross-entropy with `class_weights`; the defaults of `config` are those of
  the paper's detectors: Adam at 1e-4, halved when the loss on the validation
  rows has not fallen for three epochs, 30 epochs, batches of 32.

  Args:
    keys: key[E]; an identifier depends on its own key, classes and rows only.
    design: The design of all of them.
    classifier: The backbone with its weights, where all of them start.
    features: float32[P, h, w, c], `jaxadv.training.frozen.prefix_features` of
      a pool of pictures.
    classes: int32[E, P], 0 for clean, 1 to N for the kinds.
    train_rows: int32[E, n], rows of the pool that each trains on.
    valid_rows: int32[E, m], rows that its learning rate is scheduled by.
    config: Epochs, batch size, optimizer and schedule.
    num_classes: N + 1.
    **options: As of `jaxadv.training.fit_members` (mesh, checkpoints, ...).

  Returns:
    The stacked states and histories.

  Raises:
    UserError: If a class has no row to train on.

  Departs from the paper: the paper says nothing of the N times as many
  attacked pictures; here both sides weigh the same.

  References:
    Agarwal et al., Exploring Robustness Connection between Artificial and
    Natural Adversarial Examples, CVPR workshops 2022, section 5.3, Figure 5.
  """
  weights = [
    class_weights(own[rows], num_classes)
    for own, rows in zip(classes, train_rows, strict=True)
  ]
  return fit_heads(
    keys,
    design,
    classifier,
    features,
    classes,
    train_rows,
    valid_rows,
    config,
    num_outputs=num_classes,
    weights=np.stack(weights),
    **options,
  )


def identify(
  design: Design,
  state: TrainState,
  features: jax.Array,
  *,
  num_classes: int,
  batch_size: int = 256,
  **options: Any,
) -> np.ndarray:
  """Applies E identifiers to a pool of pictures.

  Args:
    design: Their design.
    state: Their stacked states, from `fit_identifiers`.
    features: float32[P, h, w, c], prefix features of the pool.
    num_classes: As they were trained with.
    batch_size: Pictures at a time.
    **options: As of `jaxadv.training.measure_members` (mesh, member_mode).

  Returns:
    float32[E, P, num_classes], logits of clean and of each kind.
  """
  return pool_logits(
    design,
    state,
    features,
    num_outputs=num_classes,
    batch_size=batch_size,
    **options,
  )


def called_attacked(logits: np.ndarray) -> np.ndarray:
  """Tells where the most likely class is not the clean one.

  Args:
    logits: float[..., N + 1].

  Returns:
    bool[...].
  """
  return logits.argmax(-1) != 0


def attack_score(logits: np.ndarray) -> np.ndarray:
  """Scores how likely any kind of attack is.

  Args:
    logits: float[..., N + 1].

  Returns:
    float[...], the log odds of not clean against clean. They rank pictures as
    1 - p(clean) does, but without ties where that rounds to 1.
  """
  logits = np.asarray(logits, np.float64)
  return logsumexp(logits[..., 1:], axis=-1) - logits[..., 0]


def backbone_identifier(
  design: Design, kinds: Sequence[int], config: TrainConfig = TrainConfig()
) -> Identifier:
  """Makes the identifier of one network and one pool of pictures.

  Args:
    design: The network; the classifier that `fit` and `identify` are given is
      the backbone with its weights.
    kinds: The values of `Batch.kind` that the classes 1 to N stand for; 0 is
      clean.
    config: Epochs, batch size, optimizer and schedule.

  Returns:
    An `Identifier`, differentiable. Its `fit` raises `UserError` if a picture
    is of a kind that is not among `kinds`, or if a class has no picture.

  Example:
    >>> design = Design(module, 'block3', 'block5')
    >>> identifier = backbone_identifier(design, kinds=[2])
    >>> state = identifier.fit(key, classifier, train, valid)
    >>> logits = identifier.identify(None, classifier, state, images)
  """
  values = np.array([0, *kinds])

  def fit(
    key: jax.Array,
    classifier: Classifier,
    train: Iterable[Batch],
    valid: Iterable[Batch],
  ) -> TrainState:
    features, kind, train_rows, valid_rows = pooled(
      design, classifier, train, valid
    )
    is_class = kind[:, None] == values
    if not is_class.any(-1).all():
      raise UserError(
        f'pictures are of the kinds {np.unique(kind).tolist()}, but the '
        f'identifier knows {values.tolist()}; leave out the others'
      )
    result = fit_identifiers(
      key[None],
      design,
      classifier,
      features,
      is_class.argmax(-1)[None],
      train_rows[None],
      valid_rows[None],
      config,
      num_classes=len(values),
    )
    return take_member(result.state, 0)

  def identify_images(
    keys: Keys | None,
    classifier: Classifier,
    state: TrainState,
    images: Images,
  ) -> jax.Array:
    del keys  # Nothing in it is random.
    return picture_logits(
      design, classifier, state, images, num_outputs=len(values)
    )

  return make_identifier(fit, identify_images)
