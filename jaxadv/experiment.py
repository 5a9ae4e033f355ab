"""What every experiment is made of: options, cells, and shards of the cells.

An experiment is a module with three functions, `get_config(variant)`,
`cells(config)` and `run(config, workdir)`; its config is a frozen dataclass
whose fields are declared with `option`, so that `launch.py` can offer each as
a flag without knowing the experiment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import rich.console
import rich.progress

from jaxadv.errors import UserError, near_names
from jaxadv.storage import fingerprint

VARIANTS = ('quick', 'small', 'paper')

T = TypeVar('T')


class Cell(NamedTuple):
  """An independent piece of a run, with a result file of its own.

  Attributes:
    name: Unique in the run; also the name of its result file.
    settings: What tells it from the other cells.
  """

  name: str
  settings: dict[str, Any]


def option(default: T, help: str, *, changes_result: bool = True) -> T:
  """Declares a field of a config that is also a flag.

  Args:
    default: Its value in the quick variant; its type is the flag's type, and
      a tuple becomes a comma-separated list.
    help: One line for `--help`.
    changes_result: False for what may differ between two runs of the same
      results (folders, batch sizes of inference, shards).

  Returns:
    A dataclass field.
  """
  return dataclasses.field(
    default=default,
    metadata={'help': help, 'changes_result': changes_result},
  )


@dataclasses.dataclass(frozen=True)
class Options:
  """Options that every experiment has."""

  variant: str = option('quick', 'One of quick, small, paper.')
  seed: int = option(0, 'Seed of everything random in the run.')
  data_dir: str = option(
    '',
    'Folder of prepared TFDS data sets; default $JAXADV_DATA_DIR.',
    changes_result=False,
  )
  cache_dir: str = option(
    '',
    'Folder shared by runs for victims, sets and detectors; default: a folder '
    'named cache beside the workdir.',
    changes_result=False,
  )
  batch_size: int = option(
    256,
    'Pictures per step of attacks and inference; does not change results.',
    changes_result=False,
  )
  shard: str = option(
    '0/1',
    'i/n: compute only every n-th cell, from the i-th (0 <= i < n).',
    changes_result=False,
  )


def result_config(config: Any) -> dict[str, Any]:
  """Gives the options that decide the results, as plain values."""
  return {
    field.name: getattr(config, field.name)
    for field in dataclasses.fields(config)
    if field.metadata.get('changes_result', True)
  }


def check_options(config: Options) -> None:
  """Checks the options that every experiment has.

  Raises:
    UserError: If the shard, the seed or the batch size cannot be.
  """
  shard_of([], config.shard)
  if config.batch_size < 1:
    raise UserError(f'batch_size is {config.batch_size}; it must be 1 or more')
  if config.seed < 0:
    raise UserError(f'seed is {config.seed}; it must be 0 or more')


def check_choices(
  flag: str, given: Sequence[str], allowed: Sequence[str]
) -> None:
  """Checks that every given name is allowed.

  Raises:
    UserError: Naming the first that is not, the one that was perhaps meant,
      and all that are.
  """
  for name in given:
    if name not in allowed:
      near = near_names(name, allowed)
      meant = f', perhaps {near[0]}' if near else ''
      raise UserError(
        f'{flag} has no choice {name!r}{meant}; choose from '
        f'{", ".join(allowed)}'
      )


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


def data_dir(given: str | None) -> str | None:
  """Gives the folder of data sets: as given, else from the environment."""
  return given or os.environ.get('JAXADV_DATA_DIR') or None


def cache_dir(config: Options, workdir: str) -> str:
  """Gives the cache folder: the option, or `cache` beside the workdir."""
  return config.cache_dir or os.path.join(
    os.path.dirname(os.path.abspath(workdir)), 'cache'
  )


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

  def __init__(self, total: float) -> None:
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
