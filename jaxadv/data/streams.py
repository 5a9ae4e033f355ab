"""Sets that do not fit on the device, read batch by batch through Grain."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
from absl import flags

from jaxadv.data.readers.records import Records, check_labels, decode
from jaxadv.data.sources import open_records
from jaxadv.errors import UserError
from jaxadv.types import Batch

# Batches that are made ahead, for each process.
_AHEAD = 2


class _Batches:
  """Makes the batch of a step; worker processes get a copy of their own."""

  def __init__(
    self,
    source: dict[str, Any],
    batch_size: int,
    share: slice,
    image_size: int,
    channels: int,
    seed: int | None,
  ) -> None:
    self._source = source
    self._batch_size = batch_size
    self._share = share
    self._image_size = image_size
    self._channels = channels
    self._seed = seed

  @functools.cached_property
  def records(self) -> Records:
    """The split; opened where it is read, as files cannot be sent."""
    return open_records(**self._source)

  @property
  def steps(self) -> int:
    """Number of batches in an epoch."""
    return -(-self.records.n // self._batch_size)

  def __getstate__(self) -> dict[str, Any]:
    hidden = ('records', '_order')
    return {k: v for k, v in self.__dict__.items() if k not in hidden}

  @functools.cached_property
  def _order(self) -> Callable[[int], np.ndarray]:
    """Gives the order of an epoch; keeps two, as steps are read ahead."""

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
      if self._seed is None:
        return np.arange(self.records.n)
      rng = np.random.default_rng([self._seed, epoch])
      return rng.permutation(self.records.n)

    return order

  def __call__(self, step: int) -> Batch:
    epoch, step = divmod(step, self.steps)
    start = step * self._batch_size
    rows = self._order(epoch)[start : start + self._batch_size][self._share]
    rows = rows.tolist()
    size = self._share.stop - self._share.start
    images = np.zeros(
      (size, self._image_size, self._image_size, self._channels), np.uint8
    )
    labels = np.zeros(size, np.int32)
    source = np.zeros(size, np.int32)
    if rows:
      fetched = self.records.fetch(rows)
      check_labels(self.records, rows, fetched.labels)
      labels[: len(rows)] = fetched.labels
      source[: len(rows)] = rows
      for image, row, picture in zip(
        images, rows, fetched.pictures, strict=False
      ):
        image[:] = decode(
          self.records, row, picture, self._channels, self._image_size
        )
    columns: list[Any] = [
      images,
      labels,
      np.zeros(size, np.int32),
      source,
      np.arange(size) < len(rows),
    ]
    return Batch(*columns)


def stream(
  name: str,
  split: str = 'all',
  *,
  batch_size: int,
  image_size: int,
  channels: int = 3,
  seed: int | None = None,
  num_epochs: int | None = 1,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
  start_step: int = 0,
  data_dir: str | os.PathLike[str] | None = None,
  cache_dir: str | os.PathLike[str] | None = None,
) -> grain.DatasetIterator[Batch]:
  """Reads a split batch by batch, decoding ahead on several cores.

  Batch s of an epoch is the same set of pictures for any number of hosts and
  workers: rows s * batch_size and following of the epoch's order, of which
  every host reads its own share. All hosts see the same number of steps.

  Scale the pictures on the device: `inputs.to_float(batch.images)` inside
  `jit`. On several hosts, join the shares first with
  `jax.make_array_from_process_local_data`.

  Args:
    name: As in `sources.load`.
    split: As in `sources.load`.
    batch_size: Rows of a batch, all hosts together.
    image_size: Height and width to give the pictures (`images.resize`).
    channels: 3 or 1, as in `sources.load`.
    seed: Seed of the shuffle, another one every epoch; None keeps the order.
    num_epochs: How often to read the split; None never ends.
    process_index: Number of this host, `jax.process_index()`.
    process_count: Number of hosts, `jax.process_count()`.
    num_workers: Worker processes that decode; 0 uses threads of this one,
      which often is as fast, as decoding leaves Python to other threads.
      Scripts that use workers need `if __name__ == '__main__'`.
    start_step: Batches to leave out, counted over all epochs: the number of
      steps that an interrupted run had done.
    data_dir: As in `sources.load`.
    cache_dir: As in `sources.load`.

  Returns:
    A Grain iterator over batches of batch_size / process_count rows, NumPy
    arrays on the host: images uint8[B, H, W, C], kind 0, source the index in
    the split. The last batch of an epoch is padded with black pictures, mask
    False. `get_state` and `set_state` save and restore where it is, also
    through Orbax; `close` ends its workers.

  Raises:
    UserError: If the set, split or numbers cannot be had; says what can.
    DataError: While iterating, if a stored picture is broken; names it.
  """
  lowest = {
    'batch_size': (batch_size, 1),
    'image_size': (image_size, 1),
    'num_epochs': (1 if num_epochs is None else num_epochs, 1),
    'process_count': (process_count, 1),
    'process_index': (process_index, 0),
    'num_workers': (num_workers, 0),
    'start_step': (start_step, 0),
    'seed': (seed or 0, 0),
  }
  for argument, (value, least) in lowest.items():
    if value < least:
      raise UserError(f'{argument} is {value} but must be at least {least}')
  if channels not in (1, 3):
    raise UserError(f'channels is {channels} but must be 1 or 3')
  if process_index >= process_count:
    raise UserError(
      f'process_index is {process_index} but must be below process_count, '
      f'which is {process_count}'
    )
  if batch_size % process_count:
    raise UserError(
      f'batch_size is {batch_size} but must be a multiple of process_count, '
      f'which is {process_count}'
    )
  size = batch_size // process_count
  make = _Batches(
    dict(name=name, split=split, data_dir=data_dir, cache_dir=cache_dir),
    batch_size,
    slice(process_index * size, (process_index + 1) * size),
    image_size,
    channels,
    seed,
  )
  # Grain counts steps in machine words.
  end = sys.maxsize if num_epochs is None else num_epochs * make.steps
  steps = grain.MapDataset.range(min(start_step, end), end).map(make)
  if num_workers and not flags.FLAGS.is_parsed():
    # Grain reads flags of its own before it starts a worker, and notebooks
    # and tests never parse any.
    flags.FLAGS.mark_as_parsed()
  # Each holds a batch in memory.
  threads = 1 if num_workers else min(16, os.cpu_count() or 1)
  reading = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(_AHEAD, threads)
  )
  batches = steps.to_iter_dataset(reading).mp_prefetch(
    grain.MultiprocessingOptions(
      num_workers=num_workers, per_worker_buffer_size=_AHEAD
    )
  )
  return iter(batches)
