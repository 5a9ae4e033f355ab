"""Scores a folder of pictures with a saved detector."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments.common.options import VARIANTS, Options, option
from jaxadv import reports
from jaxadv.detectors import saved
from jaxadv.errors import UserError, check_choices
from jaxadv.evaluation import folder
from jaxadv.reports import tables
from jaxadv.runs import Cell


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

  def __post_init__(self) -> None:
    """Checks what can be checked before any work.

    Raises:
      UserError: Naming the option, its value and what is allowed.
    """
    super().__post_init__()
    folder.check_threshold(self.threshold, self.fpr, self.clean)


def get_config(variant: str = 'quick', dataset: str = '') -> Config:
  """Gives the config, which is the same in all variants.

  Args:
    variant: 'quick', 'small' or 'paper'.
    dataset: Not used; pictures come from a folder.

  Raises:
    UserError: If there is no such variant.
  """
  del dataset
  check_choices('--variant', [variant], VARIANTS)
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
  lines = [f'detector:  {folder.describe(about)}']
  for role in ('images', 'clean'):
    path = getattr(config, role)
    if path or role == 'images':
      count = len(folder.picture_files(role, Path(_given(role, path))))
      lines.append(f'{role + ":":<10} {count} pictures in {path}')
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
  folder.detect_folder(
    _given('detector', config.detector),
    _given('images', config.images),
    threshold=config.threshold,
    clean=config.clean,
    fpr=config.fpr,
    skip_broken=config.skip_broken,
    batch_size=config.batch_size,
    workdir=workdir,
    variant=config.variant,
  )
  record, _ = reports.read(workdir)
  tables.print_table(record)
  target = Path(workdir)
  print(f'\nscores: {target / "scores.csv"}\nreport: {target / "report.html"}')
  return record


def _given(name: str, value: str) -> str:
  if not value:
    raise UserError(f'--exp=detect needs --{name}=FOLDER')
  return value
