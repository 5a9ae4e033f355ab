"""Pictures per second of the Grain stream against a plain loop.

`python -m benchmarks.streams` prints one table, for generated JPEG files of
400x300 pixels that become 224x224, or for a set of yours with `--dataset` and
`--data_dir`. The plain loop decodes one picture after the other in one thread
by the same path. A row leaves out its first batches, which hold the start of
the workers.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxadv.data.readers.records import decode
from jaxadv.data.sources import open_records
from jaxadv.data.streams import stream

BATCH, WARM_UP = 64, 4


def write_pictures(folder: Path, n: int) -> None:
  """Writes smooth pictures with some noise, about as large as ImageNet's."""
  rng = np.random.default_rng(0)
  (folder / 'one').mkdir()
  for index in range(n):
    coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((400, 300))
    noise = rng.normal(0, 8, (300, 400, 3))
    pixels = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'JPEG', quality=90)
    (folder / 'one' / f'{index}.jpg').write_bytes(file.getvalue())


def plain(source: dict[str, Any], image_size: int) -> Iterator[np.ndarray]:
  """The loop that one would write without Grain; never ends."""
  records = open_records(**source)
  for start in itertools.cycle(range(0, records.n - BATCH + 1, BATCH)):
    rows = range(start, start + BATCH)
    pictures = records.fetch(rows).pictures
    yield np.stack(
      [
        decode(records, row, picture, 3, image_size)
        for row, picture in zip(rows, pictures, strict=True)
      ]
    )


def rate(batches: Iterator[Any], seconds: float) -> float:
  """Median over the seconds' thirds of pictures per second."""
  for _ in range(WARM_UP):
    next(batches)
  rates = []
  for _ in range(3):
    start, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds / 3 or not count:
      next(batches)
      count += BATCH
    rates.append(count / passed)
  return statistics.median(rates)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--dataset', help='as --dataset of launch.py')
  parser.add_argument('--split', default='all')
  parser.add_argument('--data_dir')
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--seconds', type=float, default=9, help='for each row')
  parser.add_argument('--workers', type=int, nargs='*', default=[0, 1, 2])
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    if args.dataset is None:
      write_pictures(Path(folder), 2 * BATCH)
    source = {
      'name': args.dataset or folder,
      'split': args.split,
      'data_dir': args.data_dir,
    }
    print(f'{os.cpu_count()} cores, batches of {BATCH}, to {args.image_size}')
    print(f'{"":<22} pictures/s   ratio')
    base = rate(plain(source, args.image_size), args.seconds)
    print(f'{"plain loop":<22} {base:>10.0f} {1:>7.2f}')
    for workers in args.workers:
      batches = stream(
        **source,
        batch_size=BATCH,
        image_size=args.image_size,
        seed=0,
        num_epochs=None,
        num_workers=workers,
      )
      value = rate(batches, args.seconds)
      batches.close()
      what = f'stream, {workers} workers' if workers else 'stream, threads'
      print(f'{what:<22} {value:>10.0f} {value / base:>7.2f}')


if __name__ == '__main__':
  main()
