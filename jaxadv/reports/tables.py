"""Tables of a record: Markdown, CSV, and short ones for the terminal."""

from __future__ import annotations

import csv
import io
from typing import Any, NamedTuple

import rich.box
import rich.console
import rich.table

from jaxadv.errors import UserError
from jaxadv.reports.record import Claim, Record, Table
from jaxadv.reports.rows import FEW_PICTURES, Row

FEW = '†'
FOOTNOTE = (
  f'{FEW} fewer than {FEW_PICTURES} test pictures of the kind; read with care.'
)
EMPTY = '–'

_OPENING = {
  'held': 'Held',
  'did not': 'Did not hold',
  'cannot tell': 'Cannot tell',
  'not tested': 'Not tested',
}


class Grid(NamedTuple):
  """A table with its rows in their places.

  Attributes:
    title: Heading, with the value of `table.split` if there is one.
    table: The layout it follows.
    columns: Names of the columns.
    lines: (values of the row's labels, a `Row` or None for every column).
  """

  title: str
  table: Table
  columns: tuple[str, ...]
  lines: tuple[tuple[tuple[str, ...], tuple[Row | None, ...]], ...]

  @property
  def heading(self) -> list[str]:
    """Headings of all columns, those that name the line first."""
    return [words(key) for key in self.table.row_labels] + [*self.columns, 'n']

  @property
  def rows(self) -> list[Row]:
    """All rows shown."""
    return [row for _, cells in self.lines for row in cells if row is not None]


def words(key: str) -> str:
  """Makes a heading of a key: 'trained_on' becomes 'trained on'."""
  return key.replace('_', ' ')


def select(record: Record, metric: str, filters: Any = ()) -> list[Row]:
  """Gives the rows of a metric whose labels have the given values.

  Args:
    record: The record.
    metric: Name of the metric.
    filters: Mapping of labels to values; {} for all rows.

  Returns:
    Rows in the order of the record.
  """
  wanted = dict(filters).items()
  return [
    row
    for row in record.rows
    if row.metric == metric
    and all(row.labels.get(key) == value for key, value in wanted)
  ]


def lay_out(record: Record, table: Table) -> list[Grid]:
  """Puts the rows of a record into the places of a table.

  Args:
    record: The record.
    table: The layout.

  Returns:
    A grid, or one for every value of `table.split`; none without rows.

  Raises:
    UserError: If two rows would share a place.
  """
  needed = {*table.row_labels, table.column, *filter(None, [table.split])}
  rows = [
    row
    for row in select(record, table.metric, table.filters)
    if needed <= set(row.labels)
  ]
  parts = dict.fromkeys(
    str(row.labels[table.split]) if table.split else '' for row in rows
  )
  grids = []
  for part in parts:
    places: dict[tuple[str, ...], dict[str, Row]] = {}
    found: dict[str, None] = dict.fromkeys(table.columns)
    for row in rows:
      if table.split and str(row.labels[table.split]) != part:
        continue
      line = tuple(str(row.labels[key]) for key in table.row_labels)
      column = str(row.labels[table.column])
      if column in places.setdefault(line, {}):
        raise UserError(
          f'two rows stand at {line} x {column} of the table {table.title!r}; '
          'tell them apart with filters, split or another row label'
        )
      places[line][column] = row
      found[column] = None
    used = [c for c in found if any(c in cells for cells in places.values())]
    grids.append(
      Grid(
        title=f'{table.title}: {part}' if part else table.title,
        table=table,
        columns=tuple(used),
        lines=tuple(
          (line, tuple(cells.get(column) for column in used))
          for line, cells in places.items()
        ),
      )
    )
  return grids


def number(value: float) -> str:
  """Writes a number for a sentence: four digits that count."""
  if isinstance(value, int) or abs(value) >= 1000:
    return f'{value:,.0f}'
  return f'{value:.4g}'


def evidence(numbers: Any) -> str:
  """Writes the numbers behind a verdict, 'name 1.2 [1.0, 1.4], ...'."""
  parts = []
  for name, value in numbers.items():
    if isinstance(value, (list, tuple)) and len(value) == 3:
      value, low, high = (number(end) for end in value)
      parts.append(f'{name} {value} [{low}, {high}]')
    elif isinstance(value, (int, float)):
      parts.append(f'{name} {number(value)}')
    else:
      parts.append(f'{name} {value}')
  return ', '.join(parts)


def verdict(claim: Claim) -> str:
  """Writes a verdict as the opening of a sentence."""
  return _OPENING[claim.verdict]


def sentence(claim: Claim) -> str:
  """Writes claim, verdict and numbers as one plain sentence, then remarks."""
  numbers = evidence(claim.numbers)
  opening = f'{verdict(claim)}: {claim.claim}'
  opening += f' ({numbers}).' if numbers else '.'
  return ' '.join([opening, *remarks(claim)])


def remarks(claim: Claim) -> list[str]:
  """Gives what is to be said beside a verdict, in sentences."""
  found = []
  if claim.paper:
    opening = _OPENING[claim.paper].lower()
    found.append(f"By the signs of the paper's own numbers: {opening}.")
  if claim.note:
    found.append(f'{claim.note[0].upper()}{claim.note[1:]}.')
  return found


def cell(row: Row | None, decimals: int) -> list[str]:
  """Writes the parts of a cell: '62.7', '[58.1, 66.9]', '(paper 60.3)'."""
  if row is None:
    return [EMPTY]
  parts = [f'{row.value:.{decimals}f}' + FEW * row.few]
  if row.ci_low is not None and row.ci_high is not None:
    parts.append(f'[{row.ci_low:.{decimals}f}, {row.ci_high:.{decimals}f}]')
  if row.paper is not None:
    parts.append(f'(paper {row.paper:.{decimals}f})')
  return parts


def sizes(cells: tuple[Row | None, ...]) -> str:
  """Writes the number of pictures behind a line, '150' or '75–150'."""
  found = sorted({row.n for row in cells if row and row.n is not None})
  if not found:
    return EMPTY
  return str(found[0]) + (f'–{found[-1]}' if len(found) > 1 else '')


def footnotes(grid: Grid) -> list[str]:
  """Gives the sentences under a table."""
  notes = []
  if any(row.ci_low is not None for row in grid.rows):
    notes.append('In brackets: 95 % interval. n: test pictures.')
  if any(row.few for row in grid.rows):
    notes.append(FOOTNOTE)
  return [*filter(None, [grid.table.note]), *notes]


def markdown(record: Record) -> str:
  """Writes table.md: claims and warnings in sentences, figures, then tables.

  Args:
    record: The record.

  Returns:
    Markdown.
  """
  parts = [f'# {record.experiment} ({record.variant})']
  parts += filter(None, [record.question, record.answer])
  if record.claims:
    parts.append('\n'.join(f'- {sentence(claim)}' for claim in record.claims))
  if record.warnings:
    parts.append('## Warnings')
    parts.append('\n'.join(f'- {warning}' for warning in record.warnings))
  for figure in record.figures:
    parts.append(f'![{figure.name}](figures/{figure.name}.png)')
    parts.append(figure.caption)
  for table in record.tables:
    for grid in lay_out(record, table):
      lines = [grid.heading, ['---'] * len(grid.heading)]
      lines += [
        [
          *line,
          *(' '.join(cell(r, table.decimals)) for r in cells),
          sizes(cells),
        ]
        for line, cells in grid.lines
      ]
      parts.append(f'## {grid.title}, {table.metric}')
      parts.append('\n'.join('| ' + ' | '.join(line) + ' |' for line in lines))
      parts += footnotes(grid)
  if record.missing:
    parts.append('## Missing')
    parts.append('\n'.join(f'- {what}' for what in record.missing))
  return '\n\n'.join(parts) + '\n'


def comma_separated(record: Record) -> str:
  """Writes table.csv: the claims, then a block a table, blank lines between.

  Every column of a table becomes five: value, low, high, paper and n.

  Args:
    record: The record.

  Returns:
    CSV with unrounded numbers.
  """
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow(['claim', 'verdict', 'numbers', 'paper', 'note'])
  for claim in record.claims:
    numbers = evidence(claim.numbers)
    writer.writerow(
      [claim.claim, claim.verdict, numbers, claim.paper, claim.note]
    )
  fields = ('value', 'ci_low', 'ci_high', 'paper', 'n')
  for table in record.tables:
    for grid in lay_out(record, table):
      writer.writerows([[], [f'{grid.title}, {table.metric}']])
      writer.writerow(
        [
          *table.row_labels,
          *(f'{c} {field}' for c in grid.columns for field in fields),
        ]
      )
      for line, cells in grid.lines:
        # A None row or field becomes an empty cell.
        writer.writerow(
          [*line, *(getattr(r, field, None) for r in cells for field in fields)]
        )
  return file.getvalue()


def print_table(
  record: Record, console: rich.console.Console | None = None
) -> None:
  """Prints claims, warnings and short tables; 80 characters, eight columns.

  Cells are 'ours (paper)' with one digit less than in the files.

  Args:
    record: The record.
    console: Where to; standard output if None.
  """
  console = console or rich.console.Console()
  for claim in record.claims:
    console.print(f'• {sentence(claim)}', markup=False, highlight=False)
  for warning in record.warnings:
    console.print(f'• Warning: {warning}', markup=False, highlight=False)
  for table in record.tables:
    for grid in lay_out(record, table):
      # One number of pictures for all lines is told once, to save its column.
      counts = {sizes(cells) for _, cells in grid.lines}
      alike = len(counts) == 1
      # Not the table's own title, which would fold at a narrow table's width.
      console.print(
        f'{grid.title}, {table.metric}'
        + f', n = {min(counts)}' * (alike and counts != {EMPTY})
        + ', in parentheses the paper'
        * any(row.paper is not None for row in grid.rows),
        markup=False,
        highlight=False,
      )
      shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=0)
      for index, heading in enumerate(grid.heading[: -1 if alike else None]):
        name = index < len(table.row_labels)
        side: Any = 'left' if name else 'right'
        shown.add_column(heading, justify=side, no_wrap=not name)
      decimals = max(table.decimals - 1, 0)
      for line, cells in grid.lines:
        texts = [*line, *(_short(r, decimals) for r in cells), sizes(cells)]
        shown.add_row(*texts[: -1 if alike else None])
      console.print(shown)
      if any(row.few for row in grid.rows):
        console.print(FOOTNOTE + '\n')


def _short(row: Row | None, decimals: int) -> str:
  text = cell(row, decimals)[0]
  if row is None or row.paper is None:
    return text
  return f'{text} ({row.paper:.{decimals}f})'
