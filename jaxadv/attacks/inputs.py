"""What an evaluation refuses, each with what to do instead."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxadv.errors import DataError, UserError
from jaxadv.types import bound

_UNDECLARED = (
  'the classifier gives other logits for the same pictures when it is called '
  'again; switch dropout and other noise off, or declare it with '
  'from_function(..., stochastic=True) and draw from the keys that it then gets'
)


class Pictures(NamedTuple):
  """What is attacked; NumPy arrays.

  Attributes:
    images: [N, H, W, C], uint8 or float32 in [0, 1].
    labels: int32[N], the true classes.
    source: int32[N], ids of the pictures.
    targets: int32[N], the classes to reach, or None for an untargeted attack.
  """

  images: np.ndarray
  labels: np.ndarray
  source: np.ndarray
  targets: np.ndarray | None

  @property
  def aims(self) -> np.ndarray:
    """The labels that the attack is given."""
    return self.labels if self.targets is None else self.targets


def checked(
  images: ArrayLike,
  labels: ArrayLike,
  source: ArrayLike | None,
  targets: ArrayLike | None,
) -> Pictures:
  """Refuses pictures and numbers that cannot be attacked.

  Args:
    images: [N, H, W, C].
    labels: [N].
    source: [N], or None for 0 to N - 1.
    targets: [N], or None.

  Returns:
    The same as NumPy arrays.

  Raises:
    UserError: If one has the wrong shape, type or range.
    DataError: If a picture holds NaN or infinity.
  """
  images = np.asarray(images)
  if images.ndim != 4 or not len(images):
    raise UserError(
      f'images have shape {images.shape} but must be [N, H, W, C] with N > 0'
    )
  if images.dtype not in (np.uint8, np.float32):
    raise UserError(
      f'images are {images.dtype} but must be uint8, or float32 in [0, 1]'
    )
  if images.dtype == np.float32:
    per_picture = images.reshape(len(images), -1)
    broken = ~np.isfinite(per_picture).all(axis=1)
    if broken.any():
      raise DataError(
        f'the picture in row {np.argmax(broken)} holds NaN or infinity'
      )
    outside = (per_picture.min(axis=1) < 0) | (per_picture.max(axis=1) > 1)
    if outside.any():
      row = np.argmax(outside)
      raise UserError(
        f'the picture in row {row} ranges from {per_picture[row].min():g} to '
        f'{per_picture[row].max():g} but must lie in [0, 1]; normalisation '
        'belongs inside the classifier'
      )

  def integers(name: str, values: ArrayLike) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != images.shape[:1] or values.dtype.kind not in 'iu':
      raise UserError(
        f'{name} are {values.dtype}{list(values.shape)} but must be integers, '
        f'one for each of the {len(images)} pictures'
      )
    return values.astype(np.int32)

  return Pictures(
    images,
    integers('labels', labels),
    integers('source', np.arange(len(images)) if source is None else source),
    None if targets is None else integers('targets', targets),
  )


def check_targets(pictures: Pictures, targeted: bool) -> None:
  """Refuses targets that do not fit the attack or the labels.

  Args:
    pictures: What is attacked.
    targeted: Whether the attack is.

  Raises:
    UserError: If targets are missing, not wanted, or the true label.
  """
  labels, targets = pictures.labels, pictures.targets
  if targets is None:
    if targeted:
      raise UserError(
        'the attack is targeted but targets are None; give the classes to '
        'reach as targets, and the true classes as labels'
      )
    return
  if not targeted:
    raise UserError(
      'targets are given but the attack is untargeted; build it with '
      'targeted=True or leave the targets out'
    )
  same = targets == labels
  if same.any():
    row = np.argmax(same)
    raise UserError(
      f'the target in row {row} is {targets[row]}, the true label; give '
      'another class to reach'
    )


def check_classifier(
  classifier: Any, key: jax.Array, pictures: Pictures
) -> None:
  """Refuses what shows when a classifier is traced; computes nothing.

  Args:
    classifier: A classifier.
    key: One key.
    pictures: What is attacked.

  Raises:
    UserError: If it gives no logits, lacks a class of the labels or targets,
      or has random constants although it is not stochastic.
  """
  picture = jax.ShapeDtypeStruct((1, *pictures.images.shape[1:]), jnp.float32)

  def trace():
    # A new function every time: JAX would remember the trace of an old one.
    forward = lambda key, images: bound(classifier, key[None], 0)(images)
    return jax.make_jaxpr(forward)(key, picture)

  first = trace()
  shape = first.out_avals[0].shape
  if len(shape) != 2:
    raise UserError(
      f'the classifier gives {list(shape)} for one picture but must give '
      'logits, [1, number of classes]'
    )
  for name in ('labels', 'targets'):
    classes = getattr(pictures, name)
    if classes is None:
      continue
    outside = (classes < 0) | (classes >= shape[1])
    if outside.any():
      row = np.argmax(outside)
      raise UserError(
        f'{name} hold {classes[row]} in row {row} but the classifier has '
        f'classes 0 to {shape[1] - 1}'
      )
  if getattr(classifier, 'stochastic', False):
    return
  second = trace()
  # Functions inside are printed with addresses that mean nothing.
  text = lambda traced: re.sub('0x[0-9a-f]+', '', str(traced.jaxpr))
  constants = zip(first.consts, second.consts, strict=False)
  if text(first) != text(second) or not all(
    one is other or np.array_equal(_numbers(one), _numbers(other))
    for one, other in constants
  ):
    raise UserError(_UNDECLARED)


def _numbers(constant: Any) -> np.ndarray:
  if jax.dtypes.issubdtype(constant.dtype, jax.dtypes.prng_key):
    constant = jax.random.key_data(constant)
  return np.asarray(constant)


def check_repeatable(logits: jax.Array, again: jax.Array) -> None:
  """Refuses logits that differ by more than the order of additions does.

  Args:
    logits: float32[B, K].
    again: float32[B, K], of the same pictures.

  Raises:
    UserError: If they differ.
  """
  if jnp.any(jnp.abs(logits - again) > 1e-3 * (1 + jnp.abs(logits))):
    raise UserError(_UNDECLARED)
