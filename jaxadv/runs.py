"""A run: its cells, shards of them, random keys by name, and its progress."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import rich.console
import rich.progress

from jaxadv.errors import UserError
from jaxadv.storage import fingerprint


class Cell(NamedTuple):
  """An independent piece of a run, with a result file of its own.

  Attributes:
    name: Unique in the run; also the name of its result file.
    settings: What tells it from the other cells.
  """

  name: str
  settings: dict[str, Any]


def shard_of(cells: Sequence[Cell], shard: str) -> list[Cell]:
  """Picks the cells of one shard, `i/n`: every n-th, from the i-th.

  Raises:
    UserError: If `shard` is not of the form i/n with 0 <= i < n.
  """
  try:
    index, count = (int(part) for part in shard.split('/'))
  except ValueError:
    index, count = -1, 0
  if not 0 <= index < count:
    raise UserError(f'shard is {shard!r}; give i/n with 0 <= i < n, as in 0/4')
  return list(cells)[index::count]


@contextlib.contextmanager
def freed_if_refused(
  folder: Path, errors: tuple[type[Exception], ...] = (UserError,)
) -> Iterator[None]:
  """Leaves a workdir to the corrected command if a run is refused in the block.

  Args:
    folder: The workdir; one with a finished cell stays as it is.
    errors: Which errors refuse a run.
  """
  try:
    yield
  except errors:
    finished = folder / 'cells'
    if not any(path.is_file() for path in finished.glob('*')):
      shutil.rmtree(finished, ignore_errors=True)
      (folder / 'config.json').unlink(missing_ok=True)
    raise


def stream(seed: int, name: str) -> jax.Array:
  """Gives the random key of one part of a run, whatever the order."""
  return jax.random.key(int(fingerprint([seed, name])[:8], 16))


class Progress:
  """Shows on standard error what is being done and the time left.

  A terminal gets a bar; a log file a line for each piece of work, with the
  seconds since the start.
  """

  def __init__(self, total: float):
    """Starts the clock.

    Args:
      total: Number of units of work.
    """
    console = rich.console.Console(stderr=True)
    self._bar = rich.progress.Progress(
      rich.progress.TextColumn('{task.description:<34}'),
      rich.progress.BarColumn(),
      rich.progress.TaskProgressColumn(),
      rich.progress.TimeElapsedColumn(),
      rich.progress.TextColumn('left'),
      rich.progress.TimeRemainingColumn(),
      console=console,
      disable=not console.is_terminal,
    )
    self._task = self._bar.add_task('', total=total)
    self._text = ''
    self._done = 0.0
    self._started = time.monotonic()

  def __enter__(self) -> Progress:
    """Shows the bar."""
    self._bar.start()
    return self

  def __exit__(self, *error: object) -> None:
    """Leaves the bar as it is."""
    self._bar.stop()

  def note(self, text: str, share: float = 0.0) -> None:
    """Tells what is being done.

    Args:
      text: A few words.
      share: How much of the unit under way is done, in [0, 1].
    """
    self._bar.update(self._task, description=text, completed=self._done + share)
    if self._bar.disable and text != self._text:
      seconds = time.monotonic() - self._started
      print(f'[{seconds:6.1f} s] {text}', file=sys.stderr, flush=True)
    self._text = text

  def advance(self, units: float = 1.0) -> None:
    """Counts units as finished."""
    self._done += units


def run_cells(
  cells: Sequence[Cell],
  shard: str,
  run: Callable[[Cell], Any],
  read: Callable[[Cell], Any],
  progress: Progress,
) -> tuple[dict[str, Any], list[str]]:
  """Runs the cells of a shard and gathers those that other shards have done.

  Args:
    cells: All cells of the run.
    shard: See `shard_of`.
    run: `cell -> result`, for those of this shard.
    read: `cell -> result` of another shard's, None if it is not there yet.
    progress: Counts the cells of this shard.

  Returns:
    {cell: result}, and the names of the cells that are still to be done.
  """
  mine = {cell.name for cell in shard_of(cells, shard)}
  results, missing = {}, []
  for cell in cells:
    if cell.name in mine:
      results[cell.name] = run(cell)
      progress.advance()
    elif (result := read(cell)) is not None:
      results[cell.name] = result
    else:
      missing.append(cell.name)
  return results, missing
