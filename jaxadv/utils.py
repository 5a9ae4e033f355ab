"""Small helpers that know nothing of pictures or networks."""

from __future__ import annotations

import ctypes
import sys

import jax
import numpy as np

from jaxadv.errors import UserError


def check_range(
  name: str,
  value,
  low: float,
  high: float,
  *,
  open_low: bool = False,
  advice: str = '',
) -> None:
  """Refuses a hyperparameter outside its range; a traced one passes.

  Args:
    name: What the user called it.
    value: A number or an array of them.
    low: The smallest legal value.
    high: The largest legal value.
    open_low: Whether `low` itself is refused.
    advice: A last half-sentence, such as the usual mistake.

  Raises:
    UserError: If a concrete value lies outside or is not a number.
  """
  if isinstance(value, jax.core.Tracer):
    return
  numbers = np.asarray(value, np.float64)
  above = numbers > low if open_low else numbers >= low
  if not np.all(above & (numbers <= high)):
    bracket = '(' if open_low else '['
    given = value if numbers.ndim == 0 else f'values up to {numbers.max()}'
    raise UserError(
      f'{name} is {given} but must lie in {bracket}{low:g}, {high:g}]{advice}'
    )


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
