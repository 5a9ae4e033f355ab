"""Errors that one sentence explains; `launch.py` prints them and exits."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence


class UserError(ValueError):
  """What was asked for cannot be: names the value given and the valid ones.

  Raised before any long work starts; `launch.py` turns it into exit code 2.
  """


class DataError(RuntimeError):
  """Data on disk or a number in a run is broken; names the file or record.

  Raised in the middle of work; results finished earlier stay as they are.
  """


class DoubtWarning(UserWarning):
  """What was asked for was done, but its numbers may not mean what they say."""


def near_names(
  word: str, known: Iterable[str], cutoff: float = 0.6
) -> list[str]:
  """Gives the known names that were perhaps meant, the nearest first.

  Args:
    word: What was given.
    known: Names that there are.
    cutoff: How alike they have to be, in [0, 1]; case does not count.

  Returns:
    Three names at most.
  """
  names = {name.lower(): name for name in sorted(known)}
  close = difflib.get_close_matches(word.lower(), names, cutoff=cutoff)
  return [names[name] for name in close]


def check_choices(
  name: str, given: Sequence[str], allowed: Sequence[str]
) -> None:
  """Checks that every given word is allowed.

  Args:
    name: Of the argument or flag that they were given for.
    given: The words.
    allowed: All that there are.

  Raises:
    UserError: Naming the first that is not, the one that was perhaps meant,
      and all that are.
  """
  for word in given:
    if word not in allowed:
      near = near_names(word, allowed)
      meant = f', perhaps {near[0]}' if near else ''
      raise UserError(
        f'{name} has no choice {word!r}{meant}; choose from '
        f'{", ".join(allowed)}'
      )


def check_at_least(name: str, value: float, least: float) -> None:
  """Checks that a number is not too small.

  Raises:
    UserError: Naming the argument or flag, its value and what is allowed.
  """
  if value < least:
    raise UserError(f'{name} is {value}; it must be {least:g} or more')


@contextlib.contextmanager
def explain_out_of_memory(
  batch_size: int, advice: str | None = None
) -> Iterator[None]:
  """Turns a device's out-of-memory error into one that says what to try.

  JAX computes asynchronously, so the block has to read a result (or call
  `block_until_ready`) before it ends.

  Args:
    batch_size: The batch size that the block works with.
    advice: What to try where `batch_size` changes nothing; default: a batch
      size half as large.

  Raises:
    DataError: If the block runs out of memory; says what to try.
  """
  try:
    yield
  except Exception as error:
    full = isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)
    if not full:
      raise
    if advice is None and batch_size > 1:
      advice = f'try batch_size={batch_size // 2}'
    advice = advice or 'use a smaller network or a device with more memory'
    raise DataError(
      f'out of memory with a batch size of {batch_size}; {advice}'
    ) from error
