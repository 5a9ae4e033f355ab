"""What a reader gets of a run: tables, figures and one page.

`write_report` keeps the record of a run and renders it; `render` draws
everything again from the record alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxadv.reports import html, plots, tables
from jaxadv.reports.record import (
  Claim,
  Plot,
  Record,
  Table,
  provenance,
  read,
  write,
)
from jaxadv.reports.rows import (
  Row,
  count_row,
  estimate_rows,
  share_row,
  share_rows,
)
from jaxadv.storage import replacing

__all__ = [
  'Claim',
  'Plot',
  'Record',
  'Row',
  'Table',
  'count_row',
  'estimate_rows',
  'provenance',
  'read',
  'render',
  'share_row',
  'share_rows',
  'write',
  'write_report',
]


def write_report(
  record: Record,
  arrays: Mapping[str, np.ndarray],
  workdir: str | os.PathLike[str],
) -> None:
  """Writes all that a run leaves: the record, then what is drawn from it.

  Args:
    record: What was measured, with the layout of tables and figures.
    arrays: Scores, curves and pictures that the figures name.
    workdir: Folder, made if need be.

  Raises:
    DataError: If a number is not finite or the disk is full.
    UserError: If a layout does not fit the record.
  """
  write(record, arrays, workdir)
  render(workdir)


def render(workdir: str | os.PathLike[str]) -> None:
  """Draws table.md, table.csv, `figures/*.png` and report.html again.

  Args:
    workdir: Folder of a finished run; only results.json and arrays.npz in it
      are read.

  Raises:
    DataError: If the record is absent or broken, or the disk is full.
    UserError: If a layout does not fit the record.
  """
  workdir = Path(workdir)
  record, arrays = read(workdir)
  pictures = {}
  for figure in record.figures:
    path = workdir / 'figures' / f'{figure.name}.png'
    plots.draw(figure, record, arrays, path)
    pictures[figure.name] = path.read_bytes()
  for name, text in (
    ('table.md', tables.markdown(record)),
    ('table.csv', tables.comma_separated(record)),
    ('report.html', html.page(record, pictures)),
  ):
    with replacing(workdir / name) as file:
      file.write(text.encode())
