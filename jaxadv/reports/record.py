"""The record of a run: results.json and arrays.npz.

Everything a reader sees (tables, figures, the report) is drawn from this
record, so a layout can change without running anything again.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxadv import storage
from jaxadv.errors import DataError, UserError
from jaxadv.reports.rows import Row

VERDICTS = ('held', 'did not', 'cannot tell', 'not tested')


@dataclasses.dataclass(frozen=True)
class Claim:
  """A claim of the paper and what this run says of it.

  Attributes:
    claim: The claim in one plain sentence, without a full stop.
    verdict: One of `VERDICTS`.
    numbers: What the verdict rests on, by name: a number, or [value, low,
      high] with a confidence interval.
    paper: The verdict of those of its differences that are printed, by their
      signs; '' where none is.
    note: Why it was not tested, or what its intervals leave out.
  """

  claim: str
  verdict: str
  numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  paper: str = ''
  note: str = ''

  def __post_init__(self) -> None:
    for verdict in filter(None, (self.verdict, self.paper)):
      if verdict not in VERDICTS:
        raise UserError(
          f'{verdict!r} is no verdict; choose from {", ".join(VERDICTS)}'
        )


@dataclasses.dataclass(frozen=True)
class Table:
  """How rows are laid out: one line a combination, one column a value.

  Attributes:
    title: Heading.
    metric: Only rows of this metric are shown.
    row_labels: Labels whose values name a line, in this order.
    column: The label whose values become columns.
    split: A label for each of whose values there is a table, or ''.
    columns: Order of the columns; as they first occur if empty.
    filters: Only rows with these values of their labels are shown.
    note: A sentence under the table.
    control: Whether it belongs to the negative controls of the report.
    decimals: Digits after the point.
  """

  title: str
  metric: str
  row_labels: tuple[str, ...]
  column: str
  _: dataclasses.KW_ONLY
  split: str = ''
  columns: tuple[str, ...] = ()
  filters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  note: str = ''
  control: bool = False
  decimals: int = 1


@dataclasses.dataclass(frozen=True)
class Plot:
  """A figure that `plots.draw` can draw from the record.

  Attributes:
    name: Stem of its file under figures/.
    kind: Name of a function of `plots`.
    caption: What it shows, in a sentence or two.
    options: Arguments of that function; plain values.
  """

  name: str
  kind: str
  caption: str
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Record:
  """All that is kept of a run, in plain values.

  Attributes:
    experiment: Its name.
    variant: 'quick', 'small' or 'paper'.
    config: The options that decide the results.
    provenance: See `provenance`.
    claims: The paper's claims with verdicts.
    rows: The measured figures; times never stand here.
    missing: What the run could not show, a sentence each.
    question: What the experiment asks.
    answer: The answer in one sentence.
    tables: Layout of the tables.
    figures: Layout of the figures.
    warnings: Signs that the figures mislead, a sentence each.
  """

  experiment: str
  variant: str
  config: Any
  provenance: Mapping[str, Any]
  claims: tuple[Claim, ...] = ()
  rows: tuple[Row, ...] = ()
  missing: tuple[str, ...] = ()
  question: str = ''
  answer: str = ''
  tables: tuple[Table, ...] = ()
  figures: tuple[Plot, ...] = ()
  warnings: tuple[str, ...] = ()


_ROW_FIELDS = tuple(f.name for f in dataclasses.fields(Row) if f.name != 'keys')


def write(
  record: Record,
  arrays: Mapping[str, np.ndarray],
  workdir: str | os.PathLike[str],
) -> None:
  """Writes results.json and arrays.npz, each whole or not at all.

  Absolute paths in the record are shortened to their last part: a record is
  for other machines.

  Args:
    record: The record.
    arrays: Scores and curves behind the figures, by name.
    workdir: Folder, made if need be.

  Raises:
    DataError: If a number is not finite or the disk is full.
    UserError: If a row's labels use the name of one of its other fields.
  """
  for row in record.rows:
    _check(row)
  contents = _plain(dataclasses.asdict(record))
  contents['rows'] = [row.pop('labels') | row for row in contents['rows']]
  # The arrays first: whoever finds results.json finds everything.
  storage.write_npz(Path(workdir) / 'arrays.npz', **arrays)
  storage.write_json(Path(workdir) / 'results.json', contents)


def read(
  workdir: str | os.PathLike[str],
) -> tuple[Record, dict[str, np.ndarray]]:
  """Reads what `write` wrote.

  Args:
    workdir: Folder of a finished run.

  Returns:
    The record (lists in place of tuples inside its config) and the arrays.

  Raises:
    DataError: If a file is absent or broken; names it.
  """
  path = Path(workdir) / 'results.json'
  contents = storage.read_json(path)
  try:
    rows = [
      Row(
        labels={k: v for k, v in row.items() if k not in _ROW_FIELDS},
        **{k: v for k, v in row.items() if k in _ROW_FIELDS},
      )
      for row in contents['rows']
    ]
    tables = [
      Table(
        **table
        | {
          'row_labels': tuple(table['row_labels']),
          'columns': tuple(table['columns']),
        }
      )
      for table in contents['tables']
    ]
    record = Record(
      **contents
      | {
        'claims': tuple(Claim(**claim) for claim in contents['claims']),
        'rows': tuple(rows),
        'missing': tuple(contents['missing']),
        # Older records have none.
        'warnings': tuple(contents.get('warnings', ())),
        'tables': tuple(tables),
        'figures': tuple(Plot(**figure) for figure in contents['figures']),
      }
    )
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise DataError(f'{path} is no record of a run: {error!r}') from error
  return record, storage.read_npz(Path(workdir) / 'arrays.npz')


def provenance(
  seeds: Any, seconds: float, fingerprints: Mapping[str, str]
) -> dict[str, Any]:
  """Collects where results come from, without naming machine or folders.

  Args:
    seeds: The seed or seeds of the run.
    seconds: Wall-clock time of the run.
    fingerprints: Hashes of data and weights, by name.

  Returns:
    Versions, devices, seeds, seconds, git commit (with '-dirty' if tracked
    files were changed; None outside a checkout) and fingerprints.
  """
  import jax  # Only a run has devices; rendering works without them.

  kinds = [f'{d.platform} {d.device_kind}' for d in jax.devices()]
  return {
    'versions': {'python': platform.python_version()}
    | {name: _version(name) for name in ('jaxadv', *storage.PACKAGES)},
    'devices': {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
    'seeds': seeds,
    'seconds': round(seconds, 1),
    'git_commit': _git_commit(),
    'fingerprints': dict(fingerprints),
  }


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _git_commit() -> str | None:
  """Gives the commit of the checkout that this file belongs to."""
  root = Path(__file__).resolve().parents[2]
  if not (root / '.git').exists():  # Installed inside somebody's repository.
    return None
  # Not a tag: any commit names itself by its hash.
  command = 'git describe --always --dirty --abbrev=40 --exclude=*'.split()
  try:
    done = subprocess.run(
      command, cwd=root, capture_output=True, text=True, timeout=30, check=True
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip()


def _check(row: Row) -> None:
  clash = sorted(set(row.labels) & set(_ROW_FIELDS))
  if clash:
    raise UserError(
      f'a row has the labels {", ".join(clash)}, which are names of its other '
      'fields; rename them'
    )
  for name in ('value', 'ci_low', 'ci_high', 'paper'):
    number = getattr(row, name)
    if number is None and name != 'value':
      continue
    if number is None or not math.isfinite(number):
      raise DataError(
        f'{name} of the {row.metric} of {dict(row.labels)} is {number}; only '
        'finite numbers are recorded'
      )


def _plain(value: Any) -> Any:
  """Turns nested values into what JSON holds, without absolute paths."""
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if isinstance(value, (np.ndarray, np.generic)):
    return _plain(value.tolist())
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return _plain(dataclasses.asdict(value))
  if isinstance(value, os.PathLike):
    value = os.fspath(value)
  if isinstance(value, str) and os.path.isabs(value):
    return os.path.basename(os.path.normpath(value))
  return value
