"""Small helpers that know nothing of pictures or networks."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.errors import UserError


def check_range(
  name: str,
  value: Any,
  low: float,
  high: float,
  *,
  open_low: bool = False,
  advice: str = '',
) -> None:
  """Refuses a hyperparameter outside its range; a traced one passes.

  Args:
    name: What the user called it.
    value: A finite number or an array of them.
    low: The smallest legal value.
    high: The largest legal value.
    open_low: Whether `low` itself is refused.
    advice: A last half-sentence, such as the usual mistake.

  Raises:
    UserError: If a concrete value lies outside or is not a number.
  """
  if isinstance(value, jax.core.Tracer):
    return
  numbers = _as_numbers(value)
  if numbers is None:
    raise UserError(f'{name} is {_shown(value)} but must be a number{advice}')
  above = numbers > low if open_low else numbers >= low
  if not np.all(above & (numbers <= high) & np.isfinite(numbers)):
    bracket, end = '(' if open_low else '[', ')' if high == np.inf else ']'
    given = value if numbers.ndim == 0 else f'values up to {numbers.max()}'
    raise UserError(
      f'{name} is {given} but must lie in '
      f'{bracket}{low:g}, {high:g}{end}{advice}'
    )


def check_whole(
  name: str, value: Any, low: int, high: float = float('inf')
) -> None:
  """Refuses a count that is no whole number or lies outside its range.

  Args:
    name: What the user called it.
    value: A whole number. Counts shape compiled loops and arrays, so a traced
      one is refused too.
    low: The smallest legal value.
    high: The largest legal value.

  Raises:
    UserError: If it is anything else.
  """
  if isinstance(value, jax.core.Tracer):
    raise UserError(
      f'{name} is traced but must be a plain whole number, because it shapes '
      'what is compiled'
    )
  numbers = _as_numbers(value)
  if numbers is None or numbers.ndim or not _is_whole(np.asarray(value)):
    raise UserError(f'{name} is {_shown(value)} but must be a whole number')
  check_range(name, value, low, high)


def _as_numbers(value: Any) -> np.ndarray | None:
  """Gives float64 numbers, or None for what is no number, such as '10'."""
  try:
    array = np.asarray(value)
  except (TypeError, ValueError):
    return None
  is_real = _is_whole(array) or jnp.issubdtype(array.dtype, jnp.floating)
  return array.astype(np.float64) if is_real else None


def _is_whole(array: np.ndarray) -> bool:
  return jnp.issubdtype(array.dtype, jnp.integer)


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) < 40 else f'of type {type(value).__name__}'


def keep_freed_memory() -> None:
  """Keeps freed memory in the process, for calls of compiled functions on CPU.

  Every such call allocates its buffers anew. The C library gives buffers of
  over 32 MiB back to the system each time, and the next call then waits for
  every page of them: a fifth of the time of a gradient of VGG11. Does nothing
  where the C library is not glibc.
  """
  if not sys.platform.startswith('linux'):
    return
  set_option = getattr(ctypes.CDLL(None), 'mallopt', None)
  if set_option is None:
    return
  trim_threshold, top_pad, mmap_max = -1, -2, -4  # names in malloc.h
  set_option(mmap_max, 0)
  set_option(trim_threshold, 2**31 - 1)
  set_option(top_pad, 2**29)
