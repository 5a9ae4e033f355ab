"""Scores a folder of pictures with a saved detector."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxadv import experiment, reports, storage
from jaxadv.data.images import decode
from jaxadv.data.listing import listing, warn_of_others
from jaxadv.detectors import saved
from jaxadv.errors import DataError, UserError, explain_out_of_memory
from jaxadv.experiment import Cell, Options, check_options, option
from jaxadv.metrics.intervals import wilson
from jaxadv.metrics.roc import threshold_at_fpr
from jaxadv.reports import tables
from jaxadv.units import to_float

RATE = 'called attacked (%)'
# Pictures in the report with the highest, and with the lowest scores.
NUM_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Config(Options):
  """What to score, with what, and where to draw the line."""

  detector: str = option(
    '', 'Folder of a saved detector, WORKDIR/detectors/CELL/KIND.'
  )
  images: str = option('', 'Folder of pictures, however nested.')
  threshold: float = option(
    0.0, 'A picture is called attacked if its score is above it.'
  )
  clean: str = option(
    '', 'Folder of pictures known to be clean, to count false alarms on.'
  )
  fpr: float = option(
    0.0,
    'Threshold that calls at most this share of --clean attacked; 0: take '
    '--threshold.',
  )
  skip_broken: bool = option(
    False, 'List pictures that cannot be read, in place of stopping at one.'
  )

  def __post_init__(self):
    """Checks what can be checked before any work.

    Raises:
      UserError: Naming the option, its value and what is allowed.
    """
    check_options(self)
    if not 0 <= self.fpr < 1:
      raise UserError(
        f'--fpr is {self.fpr}; give a share in (0, 1), such as 0.05'
      )
    if self.fpr and not self.clean:
      raise UserError(
        f'--fpr={self.fpr} needs pictures known to be clean: --clean=FOLDER'
      )
    if self.fpr and self.threshold:
      raise UserError(
        '--fpr and --threshold both set the threshold; give one of them'
      )
    if not math.isfinite(self.threshold):
      raise UserError(
        f'--threshold is {self.threshold}; give a finite number, a score'
      )


class Scored(NamedTuple):
  """The pictures of a folder with their scores.

  Attributes:
    files: Paths below the folder, sorted.
    scores: float32[n].
    broken: Files that could not be read, with the reason.
  """

  files: list[str]
  scores: np.ndarray
  broken: list[str]


def get_config(variant: str = 'quick', dataset: str = '') -> Config:
  """Gives the config, which is the same in all variants.

  Args:
    variant: 'quick', 'small' or 'paper'.
    dataset: Not used; pictures come from a folder.

  Raises:
    UserError: If there is no such variant.
  """
  del dataset
  experiment.check_choices('--variant', [variant], experiment.VARIANTS)
  return Config(variant=variant)


def cells(config: Config) -> list[Cell]:
  """Lists the one cell of a run."""
  del config
  return [Cell('detect', {})]


def plan(config: Config, workdir: str) -> str:
  """Describes a run.

  Args:
    config: The config.
    workdir: Its folder.

  Returns:
    Lines for the terminal.

  Raises:
    UserError: If there is no such detector or no picture.
    DataError: If the detector is broken.
  """
  _, about = saved.load(_given('detector', config.detector))
  lines = [f'detector:  {describe(about)}']
  for role in ('images', 'clean'):
    folder = getattr(config, role)
    if folder or role == 'images':
      count = len(picture_files(role, folder))
      lines.append(f'{role + ":":<10} {count} pictures in {folder}')
  lines.append(f'results:   {workdir}; nothing is kept in the cache')
  return '\n'.join(lines)


def run(config: Config, workdir: str) -> reports.Record:
  """Scores the pictures and writes scores.csv, results.json and the report.

  Args:
    config: The config.
    workdir: Folder of the results.

  Returns:
    The record, as written to results.json.

  Raises:
    UserError: If there is no such detector, or no picture that can be read.
    DataError: If a picture or the detector is broken; names the file.
  """
  started = time.monotonic()
  score, about = saved.load(_given('detector', config.detector))
  folder = Path(_given('images', config.images))
  # Both before any work, as a wrong path should not cost minutes.
  files = {
    role: picture_files(role, getattr(config, role))
    for role in ('images', 'clean')
    if role == 'images' or config.clean
  }
  target = storage.open_workdir(
    workdir, {'experiment': 'detect'} | experiment.result_config(config)
  )
  with experiment.freed_if_refused(target, (UserError, DataError)):
    found = {
      role: score_files(config, score, about, getattr(config, role), names)
      for role, names in files.items()
    }
  threshold = config.threshold
  if config.fpr:
    threshold = threshold_at_fpr(found['clean'].scores, config.fpr)
  images = found['images']
  doubts = warnings(
    config, {role: scored.files for role, scored in found.items()}
  )
  write_scores(target / 'scores.csv', images, threshold)
  order = np.argsort(-images.scores, kind='stable')
  shown = {'highest': order[:NUM_SHOWN], 'lowest': order[::-1][:NUM_SHOWN]}
  count = int((images.scores > threshold).sum())
  record = reports.Record(
    experiment='detect',
    variant=config.variant,
    config=experiment.result_config(config)
    | {'threshold': threshold, 'detector_is': about._asdict()},
    provenance=reports.provenance(
      seeds=[],
      seconds=time.monotonic() - started,
      fingerprints={
        'detector': storage.read_json(Path(config.detector) / 'detector.json')[
          'sha256'
        ]
      },
    ),
    rows=tuple(
      _row(
        role,
        scored.scores > threshold,
        fitted=role == 'clean' and config.fpr > 0,
      )
      for role, scored in found.items()
    ),
    missing=tuple(
      f'{role}: {text}' for role in found for text in found[role].broken
    ),
    question=f'Which pictures in {folder.name} does the detector call attacked?'
    f' It is {describe(about)}.',
    answer=f'{count} of {len(images.files)} at the threshold {threshold:.4g}.'
    + f' Warnings: {len(doubts)}, see below; trust it the less.' * bool(doubts),
    warnings=tuple(doubts),
    tables=(
      reports.Table(
        title='Share of the pictures',
        metric=RATE,
        lines=('pictures',),
        column='column',
        note='Of the clean ones these are false alarms. Every picture with its '
        'score stands in scores.csv.',
      ),
    ),
    figures=(
      reports.Figure(
        name='scores',
        kind='score_histogram',
        caption='Scores; higher means more likely attacked. The line is the '
        'threshold.',
        options={
          'scores': {role: f'scores/{role}' for role in found},
          'threshold': threshold,
        },
      ),
      *(
        reports.Figure(
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
        for name, rows in shown.items()
      ),
    ),
  )
  arrays = {f'scores/{role}': scored.scores for role, scored in found.items()}
  for name, rows in shown.items():
    arrays[f'pictures/{name}'] = np.stack(
      [read_picture(folder / images.files[i], about.image_size) for i in rows]
    )
  reports.write_report(record, arrays, target)
  tables.print_table(record)
  print(f'\nscores: {target / "scores.csv"}\nreport: {target / "report.html"}')
  return record


def describe(about: saved.About) -> str:
  """Says in words what a detector is."""
  quality = '' if about.auc is None else f', AUC {100 * about.auc:.1f} % on it'
  return (
    f'a {about.backbone} of width {about.width:g}, trained on {about.kind} '
    f'pictures of {about.data}{quality}, for {about.image_size}x'
    f'{about.image_size} pixels'
  )


def warnings(config: Config, files: Mapping[str, Sequence[str]]) -> list[str]:
  """Says what makes the clean pictures a bad measure of false alarms.

  Args:
    config: The config.
    files: Paths below `images`, and below `clean` if that is given.

  Returns:
    A sentence each.
  """
  if 'clean' not in files:
    return []
  found = []
  clean, images = (
    {_file(Path(getattr(config, role)) / name) for name in files[role]}
    for role in ('clean', 'images')
  )
  if shared := len(clean & images):
    found.append(
      f'pictures of --clean that are those of --images, too: {shared} of '
      f'{len(clean)}; count false alarms on others, which are known to be clean'
    )
  n = len(files['clean'])
  if 0 < config.fpr * n < 1 - 1e-9:
    found.append(
      f'too few clean pictures for --fpr={config.fpr:g}: the threshold is the '
      f'highest score of {n}, above which {100 * wilson(0, n)[1]:.2g} % of '
      'others may lie; give at least '
      f'{math.ceil(1 / config.fpr - 1e-9)}'
    )
  return found


def _file(path: Path) -> tuple[int, int]:
  """Tells a file, under whatever name."""
  about = path.stat()
  return about.st_dev, about.st_ino


def picture_files(role: str, folder: str) -> list[str]:
  """Lists the pictures of a folder, sorted, as paths below it.

  Files that are hidden or the system's are ignored; others that are no
  pictures are counted in a `DoubtWarning`.

  Raises:
    UserError: If the folder is absent or holds none.
  """
  root = Path(_given(role, folder))
  if not root.is_dir():
    raise UserError(f'--{role}: there is no folder {folder}')
  found = listing(root)
  if not found.pictures:
    raise UserError(
      f'--{role}: no picture in {folder}; its files must end in .png, .jpg, '
      '.webp or another suffix of a format that Pillow reads'
    )
  warn_of_others(root, found.others)
  return sorted(path.relative_to(root).as_posix() for path in found.pictures)


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
      f'cannot read the picture {path}: {error}; remove it, or pass '
      '--skip_broken'
    ) from error


def score_files(
  config: Config, score, about: saved.About, folder: str, files: Sequence[str]
) -> Scored:
  """Scores pictures, `--batch_size` at a time.

  Args:
    config: The config.
    score: A saved detector.
    about: What it is.
    folder: Where the pictures lie.
    files: Paths below it.

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
        picture = read_picture(Path(folder) / name, about.image_size)
      except DataError as error:
        if not config.skip_broken:
          raise
        broken.append(f'{name} was skipped: {error.__cause__}')
        continue
      kept.append(name)
      yield picture

  size = min(config.batch_size, len(files))
  rest = pictures()
  while batch := list(itertools.islice(rest, size)):
    padded = np.zeros((size, *batch[0].shape), np.uint8)
    padded[: len(batch)] = batch
    with explain_out_of_memory(size):
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
  return Scored(kept, found, broken)


def write_scores(path: Path, scored: Scored, threshold: float) -> None:
  """Writes scores.csv: file, score, probability, attacked (1 or 0)."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['file', 'score', 'probability', 'attacked'])
  for name, score in zip(scored.files, scored.scores.tolist(), strict=True):
    # The logistic function without overflow.
    probability = (1 + math.tanh(score / 2)) / 2
    writer.writerow(
      [name, f'{score:.6g}', f'{probability:.6g}', int(score > threshold)]
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


def _given(name: str, value: str) -> str:
  if not value:
    raise UserError(f'--exp=detect needs --{name}=FOLDER')
  return value
