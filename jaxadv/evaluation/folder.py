"""Scores a folder of pictures with a saved detector."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxadv import reports, storage
from jaxadv.data.images import decode
from jaxadv.data.listing import listing, warn_of_others
from jaxadv.detectors import saved
from jaxadv.errors import DataError, UserError, explain_out_of_memory
from jaxadv.metrics.intervals import wilson
from jaxadv.metrics.roc import threshold_at_fpr
from jaxadv.runs import freed_if_refused
from jaxadv.types import Scores
from jaxadv.units import to_float

RATE = 'called attacked (%)'
# Pictures in the report with the highest, and with the lowest scores.
NUM_SHOWN = 8


class Scored(NamedTuple):
  """The pictures of a folder with their scores.

  Attributes:
    folder: Where they lie.
    files: Paths below the folder, sorted.
    scores: float32[n].
    broken: Files that could not be read, with the reason.
  """

  folder: Path
  files: list[str]
  scores: np.ndarray
  broken: list[str]


class Detection(NamedTuple):
  """What a detector says of a folder.

  Attributes:
    images: The pictures that were asked about.
    clean: Those known to be clean; None if there are none.
    threshold: A picture is called attacked if its score is above it.
  """

  images: Scored
  clean: Scored | None
  threshold: float

  @property
  def attacked(self) -> np.ndarray:
    """Which pictures are called attacked, bool[n]."""
    return self.images.scores > self.threshold


def check_threshold(threshold: float, fpr: float, clean: str | None) -> None:
  """Checks how the threshold is asked for.

  Raises:
    UserError: If a number is out of its range, or they contradict each other.
  """
  if not 0 <= fpr < 1:
    raise UserError(f'fpr is {fpr}; give a share in (0, 1), such as 0.05')
  if fpr and not clean:
    raise UserError(f'fpr={fpr} needs pictures known to be clean: clean=FOLDER')
  if fpr and threshold:
    raise UserError(
      f'fpr={fpr} and threshold={threshold} both set the threshold; give one '
      'of them'
    )
  if not math.isfinite(threshold):
    raise UserError(f'threshold is {threshold}; give a finite number, a score')


def detect_folder(
  detector: str | os.PathLike[str],
  images: str | os.PathLike[str],
  *,
  threshold: float = 0.0,
  clean: str | os.PathLike[str] | None = None,
  fpr: float = 0.0,
  skip_broken: bool = False,
  batch_size: int = 256,
  workdir: str | os.PathLike[str] | None = None,
  variant: str = 'quick',
) -> Detection:
  """Scores the pictures of a folder with a saved detector.

  Args:
    detector: Folder that `detectors.save` wrote.
    images: Folder of pictures, however nested.
    threshold: A picture is called attacked if its score is above it.
    clean: Folder of pictures known to be clean, to count false alarms on.
    fpr: Threshold that calls at most this share of `clean` attacked, in
      (0, 1); 0 takes `threshold`.
    skip_broken: Whether pictures that cannot be read are listed, in place of
      stopping at one.
    batch_size: Pictures at a time.
    workdir: Folder for scores.csv, the record and the report; None writes
      nothing.
    variant: For the record.

  Returns:
    The scores and the threshold.

  Raises:
    UserError: If there is no such detector, or no picture that can be read.
    DataError: If a picture or the detector is broken; names the file.
  """
  started = time.monotonic()
  check_threshold(threshold, fpr, os.fspath(clean or ''))
  score, about = saved.load(detector)
  folders = {'images': Path(images)} | ({'clean': Path(clean)} if clean else {})
  # Both before any work, as a wrong path should not cost minutes.
  files = {role: picture_files(role, path) for role, path in folders.items()}
  asked = {
    'detector': os.fspath(detector),
    'images': os.fspath(images),
    'threshold': threshold,
    'clean': os.fspath(clean or ''),
    'fpr': fpr,
    'skip_broken': skip_broken,
  }
  with contextlib.ExitStack() as stack:
    if workdir:
      storage.open_workdir(workdir, {'experiment': 'detect'} | asked)
      refusals = (UserError, DataError)
      stack.enter_context(freed_if_refused(Path(workdir), refusals))
    found = {
      role: score_files(
        score, about.image_size, folders[role], names, batch_size, skip_broken
      )
      for role, names in files.items()
    }
  if fpr:
    threshold = threshold_at_fpr(found['clean'].scores, fpr)
  detection = Detection(found['images'], found.get('clean'), threshold)
  if workdir:
    config = asked | {'threshold': threshold, 'detector_is': about._asdict()}
    seconds = time.monotonic() - started
    weights = storage.read_json(Path(detector) / 'detector.json')['sha256']
    record = reports.Record(
      experiment='detect',
      variant=variant,
      config=config,
      provenance=reports.provenance(
        seeds=[], seconds=seconds, fingerprints={'detector': weights}
      ),
      **_shown(detection, about, fpr),
    )
    write_scores(Path(workdir) / 'scores.csv', detection)
    reports.write_report(record, _arrays(detection, about), workdir)
  return detection


def _roles(detection: Detection) -> dict[str, Scored]:
  """Gives the folders that were scored, by what they are."""
  clean = {} if detection.clean is None else {'clean': detection.clean}
  return {'images': detection.images} | clean


def _extremes(images: Scored) -> dict[str, np.ndarray]:
  """Picks the rows of the highest and of the lowest scores."""
  order = np.argsort(-images.scores, kind='stable')
  return {'highest': order[:NUM_SHOWN], 'lowest': order[::-1][:NUM_SHOWN]}


def _shown(
  detection: Detection, about: saved.About, fpr: float
) -> dict[str, Any]:
  """Gives what the record says and shows."""
  images, found = detection.images, _roles(detection)
  count, doubts = int(detection.attacked.sum()), warnings(detection, fpr)
  return dict(
    rows=tuple(
      _row(
        role,
        scored.scores > detection.threshold,
        fitted=role == 'clean' and fpr > 0,
      )
      for role, scored in found.items()
    ),
    missing=tuple(
      f'{role}: {text}' for role in found for text in found[role].broken
    ),
    question=f'Which pictures in {images.folder.name} does the detector call '
    f'attacked? It is {describe(about)}.',
    answer=f'{count} of {len(images.files)} at the threshold '
    f'{detection.threshold:.4g}.'
    + f' Warnings: {len(doubts)}, see below; trust it the less.'
    * bool(doubts),
    warnings=tuple(doubts),
    tables=(
      reports.Table(
        title='Share of the pictures',
        metric=RATE,
        row_labels=('pictures',),
        column='column',
        note='Of the clean ones these are false alarms. Every picture with its '
        'score stands in scores.csv.',
      ),
    ),
    figures=(
      reports.Plot(
        name='scores',
        kind='score_histogram',
        caption='Scores; higher means more likely attacked. The line is the '
        'threshold.',
        options={
          'scores': {role: f'scores/{role}' for role in found},
          'threshold': detection.threshold,
        },
      ),
      *(
        reports.Plot(
          name=name,
          kind='titled_pictures',
          caption=f'Pictures with the {name} scores, as it gets them.',
          options={
            'pictures': f'pictures/{name}',
            'titles': [
              [Path(images.files[i]).name, f'{images.scores[i]:.2f}']
              for i in rows
            ],
          },
        )
        for name, rows in _extremes(images).items()
      ),
    ),
  )


def _arrays(detection: Detection, about: saved.About) -> dict[str, np.ndarray]:
  """Gives what the figures are drawn from."""
  images = detection.images
  return {
    f'scores/{role}': scored.scores
    for role, scored in _roles(detection).items()
  } | {
    f'pictures/{name}': np.stack(
      [
        read_picture(images.folder / images.files[i], about.image_size)
        for i in rows
      ]
    )
    for name, rows in _extremes(images).items()
  }


def describe(about: saved.About) -> str:
  """Says in words what a detector is."""
  quality = '' if about.auc is None else f', AUC {100 * about.auc:.1f} % on it'
  return (
    f'a {about.backbone} of width {about.width:g}, trained on {about.kind} '
    f'pictures of {about.data}{quality}, for {about.image_size}x'
    f'{about.image_size} pixels'
  )


def warnings(detection: Detection, fpr: float) -> list[str]:
  """Says what makes the clean pictures a bad measure of false alarms.

  Args:
    detection: The pictures, with those known to be clean.
    fpr: As of `detect_folder`.

  Returns:
    A sentence each.
  """
  if detection.clean is None:
    return []
  found = []
  clean, images = (
    {_file(scored.folder / name) for name in scored.files}
    for scored in (detection.clean, detection.images)
  )
  if shared := len(clean & images):
    found.append(
      'pictures known to be clean that are among those to score, too: '
      f'{shared} of {len(clean)}; count false alarms on others'
    )
  n = len(detection.clean.files)
  if 0 < fpr * n < 1 - 1e-9:
    found.append(
      f'too few clean pictures for an FPR of {fpr:g}: the threshold is the '
      f'highest score of {n}, above which {100 * wilson(0, n)[1]:.2g} % of '
      'others may lie; give at least '
      f'{math.ceil(1 / fpr - 1e-9)}'
    )
  return found


def _file(path: Path) -> tuple[int, int]:
  """Tells a file, under whatever name."""
  about = path.stat()
  return about.st_dev, about.st_ino


def picture_files(role: str, folder: Path) -> list[str]:
  """Lists the pictures of a folder, sorted, as paths below it.

  Files that are hidden or the system's are ignored; others that are no
  pictures are counted in a `DoubtWarning`.

  Raises:
    UserError: If the folder is absent or holds none.
  """
  if not folder.is_dir():
    raise UserError(f'{role}: there is no folder {folder}')
  found = listing(folder)
  if not found.pictures:
    raise UserError(
      f'{role}: no picture in {folder}; its files must end in .png, .jpg, '
      '.webp or another suffix of a format that Pillow reads'
    )
  warn_of_others(folder, found.others)
  return sorted(path.relative_to(folder).as_posix() for path in found.pictures)


def read_picture(path: Path, size: int) -> np.ndarray:
  """Reads a picture through the one decode-resize path.

  Args:
    path: The file.
    size: Height and width to give it.

  Returns:
    uint8[size, size, 3].

  Raises:
    DataError: If it is no picture; names the file.
  """
  try:
    return decode(path.read_bytes(), 3, size)
  except (ValueError, OSError) as error:
    raise DataError(
      f'cannot read the picture {path}: {error}; remove it, or pass skip_broken'
    ) from error


def score_files(
  score: Callable[[np.ndarray], Scores],
  size: int,
  folder: Path,
  files: Sequence[str],
  batch_size: int,
  skip_broken: bool,
) -> Scored:
  """Scores pictures, a batch at a time.

  Args:
    score: `images -> scores`, as `detectors.load` gives it.
    size: Height and width of the pictures that it takes.
    folder: Where the pictures lie.
    files: Paths below it.
    batch_size: Pictures at a time.
    skip_broken: Whether those that cannot be read are listed.

  Returns:
    Those that could be read, with their scores.

  Raises:
    DataError: If a picture cannot be read and none may be skipped, or its
      score is not finite.
    UserError: If none can be read.
  """
  kept, broken, scores = [], [], []

  def pictures() -> Iterator[np.ndarray]:
    for name in files:
      try:
        picture = read_picture(folder / name, size)
      except DataError as error:
        if not skip_broken:
          raise
        broken.append(f'{name} was skipped: {error.__cause__}')
        continue
      kept.append(name)
      yield picture

  rows = min(batch_size, len(files))
  rest = pictures()
  while batch := list(itertools.islice(rest, rows)):
    padded = np.zeros((rows, *batch[0].shape), np.uint8)
    padded[: len(batch)] = batch
    with explain_out_of_memory(rows):
      scores.append(np.asarray(score(to_float(padded)))[: len(batch)])
  if not kept:
    raise UserError(
      f'none of the {len(files)} pictures in {folder} can be read'
    )
  found = np.concatenate(scores)
  finite = np.isfinite(found)
  if not finite.all():  # No threshold divides these.
    row = np.argmin(finite)
    raise DataError(
      f'the score of {kept[row]} in {folder} is {found[row]}; look at the '
      'weights of the detector'
    )
  return Scored(folder, kept, found, broken)


def write_scores(path: Path, detection: Detection) -> None:
  """Writes scores.csv: file, score, probability, attacked (1 or 0)."""
  scored, text = detection.images, io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['file', 'score', 'probability', 'attacked'])
  for name, score in zip(scored.files, scored.scores.tolist(), strict=True):
    # The logistic function without overflow.
    probability = (1 + math.tanh(score / 2)) / 2
    writer.writerow(
      [
        name,
        f'{score:.6g}',
        f'{probability:.6g}',
        int(score > detection.threshold),
      ]
    )
  with storage.replacing(path) as file:
    file.write(text.getvalue().encode())


def _row(role: str, attacked: np.ndarray, fitted: bool) -> reports.Row:
  low, high = wilson(int(attacked.sum()), len(attacked))
  shown = {'images': 'given', 'clean': 'known to be clean'}[role]
  return reports.Row(
    {'pictures': shown + fitted * ' (set the threshold)', 'column': 'share'},
    RATE,
    100 * float(attacked.mean()),
    # No interval for what was chosen on these very pictures.
    None if fitted else 100 * low,
    None if fitted else 100 * high,
    len(attacked),
  )
