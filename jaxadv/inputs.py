"""What every border checks: pictures, labels, logits, and what comes out.

Pictures are one of three things: uint8, floating in [0, 1], or neither, such
as 0 to 255 in floats or normalised ones. The dtype tells the first from the
others wherever it is known, and the range the second from the third wherever
the values are. What a user may have meant is converted, by one conversion
only; the rest is refused in one sentence.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxadv.errors import DataError, UserError
from jaxadv.units import to_float, to_uint8

# Resizing and blending leave [0, 1] by roundings, which are clipped.
_ROUNDING = 1e-6
# Share of rows whose log-probabilities may be rounded away unremarked.
_SATURATED = 0.05


def as_floating(images: Any, name: str = 'images') -> Any:
  """Gives pictures in a floating dtype by their dtype alone.

  For what is called eagerly and often with pictures on a device, where to look
  at the values would be to fetch them: those of NumPy alone are looked at.

  Args:
    images: [N, ...], uint8 or floating in [0, 1].
    name: What the user called them.

  Returns:
    float32, or the floating dtype that they have (float64 as well).

  Raises:
    UserError: If the dtype is another one, or the range of a NumPy array.
    DataError: If a picture in a NumPy array holds NaN or infinity.
  """
  if isinstance(images, np.ndarray):
    checked = as_float(images, name)
    return checked if images.dtype != np.float64 else images
  if isinstance(images, jax.Array) and jnp.issubdtype(
    images.dtype, jnp.floating
  ):
    return images
  return as_float(images, name)


def as_float(images: Any, name: str = 'images') -> Any:
  """Gives pictures as float32 in [0, 1], or says why that cannot be.

  Args:
    images: [N, ...], uint8 or floating in [0, 1], NumPy or JAX, traced or
      not. The range of traced ones is not known and not checked.
    name: What the user called them.

  Returns:
    float32 of the same shape and kind.

  Raises:
    UserError: If the dtype or the range is another one.
    DataError: If a picture holds NaN or infinity; names the row.
  """
  array: Any = images if isinstance(images, jax.Array) else np.asarray(images)
  if array.dtype == np.uint8:
    return to_float(array)
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise UserError(
      f'{name} are {array.dtype} but must be uint8, or floating in [0, 1]'
    )
  if not _is_known(array) or not array.size:
    return array.astype(np.float32)
  # On the host: inside `jit` even a constant would become traced.
  values = np.asarray(array).astype(np.float32, copy=False)
  rows = values.reshape(len(values), -1)
  low, high = rows.min(axis=1), rows.max(axis=1)  # NaN comes through both.
  broken = ~(np.isfinite(low) & np.isfinite(high))
  if broken.any():
    raise DataError(
      f'the picture in row {np.argmax(broken)} of {name} holds NaN or infinity'
    )
  outside = (low < -_ROUNDING) | (high > 1 + _ROUNDING)
  if outside.any():
    row = np.argmax(outside)
    advice = 'normalisation belongs inside the classifier'
    if low.min() >= 0 and 2 < high.max() <= 255:
      advice = 'divide by 255, or give uint8'
    raise UserError(
      f'the picture in row {row} of {name} ranges from {low[row]:g} to '
      f'{high[row]:g} but must lie in [0, 1]; {advice}'
    )
  array = array.astype(np.float32, copy=False)
  if low.min() < 0 or high.max() > 1:
    array = array.clip(0, 1)
  return array


def _is_known(array: Any) -> bool:
  """Tells whether the values of an array can be looked at here."""
  return not isinstance(array, jax.core.Tracer) and getattr(
    array, 'is_fully_addressable', True
  )


def as_uint8(images: ArrayLike, name: str = 'images') -> np.ndarray:
  """Gives pictures as 8-bit ones on the host, or says why that cannot be.

  Args:
    images: [N, ...], uint8 or floating in [0, 1], which is rounded.
    name: What the user called them.

  Returns:
    uint8 of the same shape.

  Raises:
    UserError: If the dtype or the range is another one.
    DataError: If a picture holds NaN or infinity; names the row.
  """
  array = np.asarray(images)
  return array if array.dtype == np.uint8 else to_uint8(as_float(array, name))


def check_shape(images: Any, name: str = 'images') -> None:
  """Refuses what is no batch of pictures with channels last.

  Args:
    images: Anything with a shape.
    name: What the user called them.

  Raises:
    UserError: If it is not [N, H, W, C] with N > 0.
  """
  shape = tuple(images.shape)
  if len(shape) != 4 or 0 in shape:
    raise UserError(
      f'{name} have the shape {shape} but must be [N, H, W, C] with N > 0'
    )
  # A signal of one row is longer than it has channels.
  if shape[1] in (1, 3) and shape[3] > 4 and shape[2] <= 4 * shape[3]:
    raise UserError(
      f'{name} have the shape {shape}, which looks like [N, C, H, W], but '
      f'must be [N, H, W, C]; give {name}.transpose(0, 2, 3, 1), and let the '
      'classifier put them back if it wants to'
    )


def as_labels(
  labels: Any,
  num: int,
  name: str = 'labels',
  num_classes: int | None = None,
) -> Any:
  """Gives labels as int32, or says why that cannot be.

  Args:
    labels: Integers [num], NumPy or JAX, traced or not. The range of traced
      ones is not known and not checked.
    num: Number of pictures.
    name: What the user called them.
    num_classes: Number of classes, or None if it is not known.

  Returns:
    int32[num] of the same kind.

  Raises:
    UserError: If they are no integers, not one a picture, or outside of
      [0, num_classes).
  """
  array = labels if isinstance(labels, jax.Array) else np.asarray(labels)
  if array.shape != (num,) or array.dtype.kind not in 'iu':
    column = array.ndim == 2 and array.shape[1] == 1
    one_hot = array.ndim == 2 and not column
    advice = f'; give {name}[:, 0]' * column
    advice += '; one-hot rows become labels by argmax(-1)' * one_hot
    raise UserError(
      f'{name} are {array.dtype}{list(array.shape)} but must be integers, one '
      f'for each of the {num} pictures{advice}'
    )
  if _is_known(array) and array.size:
    values = np.asarray(array)
    largest = np.iinfo(np.int32).max if num_classes is None else num_classes - 1
    smallest = np.iinfo(np.int32).min if num_classes is None else 0
    outside = (values < smallest) | (values > largest)
    if outside.any():
      row = np.argmax(outside)
      allowed = f'from {smallest} to {largest}'
      if num_classes is not None:
        allowed = f'one of the classes 0 to {largest}'
      raise UserError(
        f'{name} hold {values[row]} in row {row} but each must be {allowed}'
      )
  return array.astype(np.int32)


def as_key(key: Any) -> jax.Array:
  """Gives one random key, or says why that cannot be.

  Args:
    key: `jax.random.key(seed)`, or the older `jax.random.PRNGKey(seed)`.

  Returns:
    A key of the new style.

  Raises:
    UserError: If it is something else.
  """
  if isinstance(key, jax.Array):
    if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
      if key.ndim == 0:
        return key
    elif key.dtype == np.uint32 and key.ndim == 1:
      return jax.random.wrap_key_data(key)
  given = key
  if hasattr(key, 'dtype'):
    given = f'{key.dtype}{list(key.shape)}'
  raise UserError(
    f'key is {given!s:.80} but must be one random key; give jax.random.key(0)'
  )


def need_keys(keys: jax.Array | None, what: str) -> jax.Array:
  """Refuses to draw without keys.

  Args:
    keys: key[B], or None.
    what: What draws.

  Returns:
    The keys.

  Raises:
    UserError: If there are none.
  """
  if keys is None:
    raise UserError(
      f'{what} is called with keys, key[B], one a picture; make them with '
      'picture_keys'
    )
  return keys


def as_logits(output: Any, num: int, dtype: Any = np.float32) -> jax.Array:
  """Gives what a classifier returned as logits, or says why that cannot be.

  Args:
    output: What it returned for `num` pictures.
    num: Number of pictures.
    dtype: That of the logits; what a model computes in is its own affair.

  Returns:
    dtype[num, K].

  Raises:
    UserError: If it is something else, or K is 1.
  """
  if not hasattr(output, 'ndim'):
    parts = ', '.join(
      str(list(np.shape(leaf))) for leaf in jax.tree.leaves(output)
    )
    raise UserError(
      f'the classifier returns a {type(output).__name__} ({parts}) but must '
      'return logits alone; pick them, as in from_function(lambda images: '
      'classifier(images)[0])'
    )
  if output.ndim != 2 or output.shape[0] != num:
    raise UserError(
      f'the classifier returns {list(output.shape)} for {num} pictures but '
      f'must return logits, [{num}, number of classes]'
    )
  if output.shape[1] < 2:
    raise UserError(
      'the classifier returns one logit a picture, which leaves no other class '
      'to reach; give two, as jnp.concatenate([-z, z], axis=-1) does'
    )
  return output.astype(dtype)


@jax.custom_vjp
def finite_gradient(images: jax.Array) -> jax.Array:
  """Gives images back; entries of their gradient that are not finite are 0.

  A classifier can have finite logits and a gradient that is NaN, as
  `where(x > 0, sqrt(x), 0)` has where x is 0. One such entry would spoil the
  norm of the whole gradient, and with it all pixels.
  """
  return images


finite_gradient.defvjp(
  lambda images: (images, None),
  lambda _, gradient: (jnp.where(jnp.isfinite(gradient), gradient, 0),),
)


def doubts(logits: ArrayLike) -> list[str]:
  """Says what makes outputs of a classifier doubtful as logits.

  Args:
    logits: float[N, K], outputs for some pictures; N of ten or more say more.

  Returns:
    Sentences, none if all is well: that rows look like probabilities, that
    they look like log-probabilities that are rounded away, or that the two
    largest are always equal.
  """
  rows = np.asarray(logits, np.float64)
  rows = rows[~np.isnan(rows).any(axis=1)]
  if not len(rows):
    return []
  found = []
  sums = rows.sum(axis=1)
  # As much as the roundings of bfloat16 add up to.
  if (rows >= 0).all() and np.allclose(sums, 1, atol=0.02):
    found.append(
      'its outputs look like probabilities (none is negative, each row adds '
      'up to 1); return the logits before the softmax, whose gradient does '
      'not vanish where the classifier is sure'
    )
  with np.errstate(under='ignore'):
    total = np.exp(np.minimum(rows, 50)).sum(axis=1)
  # The logarithm of a probability that rounds to 1 is exactly 0.
  sure = (rows.max(axis=1) >= -1e-7) | np.isinf(rows).any(axis=1)
  if np.allclose(total, 1, atol=1e-3) and sure.mean() > _SATURATED:
    found.append(
      'its outputs look like log-probabilities, of which '
      f'{sure.mean():.0%} are rounded to certainty; return the logits before '
      'the softmax'
    )
  top = np.sort(rows, axis=1)[:, -2:]
  if len(rows) > 1 and (top[:, 0] == top[:, 1]).all():
    found.append(
      'its two largest outputs are always equal, so that no margin between '
      'them can be seen; look for classes that occur twice'
    )
  return found


def check_numbers(values: Any, what: str) -> None:
  """Refuses results of which a row holds NaN.

  Args:
    values: float[N, ...], NumPy or JAX; traced ones pass, as their values are
      not known.
    what: What they are, such as 'scores'.

  Raises:
    DataError: If there is a NaN; says how many rows have one, and the first.
  """
  if not _is_known(values):
    return
  rows = np.isnan(np.asarray(values)).reshape(len(values), -1).any(axis=1)
  if rows.any():
    raise DataError(
      f'{rows.sum()} of {len(rows)} {what} are NaN, the first in row '
      f'{np.argmax(rows)}; look at the weights, and at the logits and '
      'gradients of the classifier there'
    )


def check_result(
  images: Any,
  rows: np.ndarray,
  what: str,
  advice: str = 'check the gradient of the classifier there',
) -> None:
  """Refuses pictures that an attack or a defence should not have made.

  Args:
    images: float32[N, ...], on the host.
    rows: int[N], what to call them.
    what: What made them.
    advice: What to look at.

  Raises:
    DataError: If a picture has NaN or leaves [0, 1]; names the row.
  """
  images = np.asarray(images)
  # Written so that NaN counts as outside.
  inside = (images >= 0) & (images <= 1)
  whole = inside.reshape(len(images), -1).all(axis=1)
  if not whole.all():
    raise DataError(
      f'{what} gave NaN or values outside [0, 1] for the picture in row '
      f'{rows[np.argmin(whole)]}; {advice}'
    )
