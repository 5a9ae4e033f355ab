"""The report: one page that needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape
from typing import Any

from jaxadv.reports import tables
from jaxadv.reports.record import Record
from jaxadv.reports.rows import Row

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --page: #fff; --soft: #666;
  --line: #d8d8de; --shade: #f4f4f7; --held: #00684a; --not: #a83c00;
  --open: #5b5b66; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6ea; --page: #17171b;
  --soft: #a0a0aa; --line: #3a3a42; --shade: #212127; --held: #4fd1a5;
  --not: #ff9e66; --open: #b5b5c0; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--page); max-width: 75rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { margin-bottom: .3rem; }
.answer { font-size: 1.15rem; }
.soft, figcaption, .wide + p { color: var(--soft); font-size: .9rem; }
.verdict { font-weight: 600; }
.held { color: var(--held); } .did-not { color: var(--not); }
.cannot-tell, .not-tested { color: var(--open); }
li { margin: .35rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  text-align: right; vertical-align: top; white-space: nowrap; }
th { background: var(--shade); }
th.name, td.name { text-align: left; }
/* What a line is stays in sight while its numbers scroll. */
.wide .name:first-child { position: sticky; left: 0; white-space: normal;
  min-width: 5rem; max-width: 14rem; }
.wide td.name:first-child { background: var(--page); }
td small { display: block; color: var(--soft); }
figure { margin: 1.5rem 0; }
img { max-width: 100%; background: #fff; border: 1px solid var(--line);
  box-sizing: border-box; }
@media (max-width: 40rem) { body { padding: .8rem; }
  th, td { padding: .3rem .4rem; }
  img { max-width: none; height: auto; width: max(100%, 40rem); } }
.settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.settings td.name { overflow-wrap: normal; }
"""


def page(record: Record, pictures: Mapping[str, bytes]) -> str:
  """Writes the report of a run.

  Args:
    record: The record.
    pictures: PNG files by the name of their figure.

  Returns:
    HTML with styles and pictures inside, for light and dark screens.
  """
  sections = [
    f'<h1>{escape(record.experiment)}</h1>',
    f'<p class="soft">variant {escape(record.variant)}</p>',
    _section('Question and answer', _answer(record)),
    _section('Warnings', _list(record.warnings)),
    _section('Figures', _figures(record, pictures)),
    _section('Tables', _tables(record, control=False)),
    _section('Negative controls', _tables(record, control=True)),
    _section('Missing', _list(record.missing)),
    _section('Settings', _settings(record.config)),
    _section('Provenance', _settings(record.provenance)),
  ]
  return (
    '<!DOCTYPE html>\n<html lang="en-GB"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{escape(record.experiment)}, {escape(record.variant)}</title>'
    f'<style>{_STYLE}</style></head>\n<body>\n'
    + '\n'.join(filter(None, sections))
    + '\n</body></html>\n'
  )


def _section(title: str, body: str) -> str:
  return f'<h2>{title}</h2>\n{body}' if body else ''


def _list(items: Any) -> str:
  lines = '\n'.join(f'<li>{escape(item)}</li>' for item in items)
  return f'<ul>\n{lines}\n</ul>' if lines else ''


def _answer(record: Record) -> str:
  parts = []
  if record.question:
    parts.append(f'<p>{escape(record.question)}</p>')
  if record.answer:
    parts.append(f'<p class="answer">{escape(record.answer)}</p>')
  if record.claims:
    parts.append('<ul>')
    for claim in record.claims:
      name = claim.verdict.replace(' ', '-')
      parts.append(
        f'<li><span class="verdict {name}">{tables.verdict(claim)}:</span> '
        f'{escape(" ".join([claim.claim + ".", *tables.remarks(claim)]))}'
        f'<br><span class="soft">{escape(tables.evidence(claim.numbers))}'
        '</span></li>'
      )
    parts.append('</ul>')
  return '\n'.join(parts)


def _tables(record: Record, *, control: bool) -> str:
  grids = [
    grid
    for table in record.tables
    if table.control == control
    for grid in tables.lay_out(record, table)
  ]
  return '\n'.join(_table(grid) for grid in grids)


def _table(grid: tables.Grid) -> str:
  names = len(grid.table.row_labels)
  heading = [
    f'<th{_name(index < names)}>{escape(text)}</th>'
    for index, text in enumerate(grid.heading)
  ]
  lines = [f'<tr>{"".join(heading)}</tr>']
  for line, cells in grid.lines:
    texts = [f'<td{_name(True)}>{escape(text)}</td>' for text in line]
    texts += [f'<td>{_cell(row, grid.table.decimals)}</td>' for row in cells]
    texts.append(f'<td>{tables.sizes(cells)}</td>')
    lines.append(f'<tr>{"".join(texts)}</tr>')
  title = escape(f'{grid.title}, {grid.table.metric}')
  notes = ' '.join(map(escape, tables.footnotes(grid)))
  rows = '\n'.join(lines)
  return (
    f'<h3>{title}</h3>\n<div class="wide"><table>\n{rows}\n</table></div>\n'
    f'<p>{notes}</p>'
  )


def _name(is_name: bool) -> str:
  return ' class="name"' if is_name else ''


def _cell(row: Row | None, decimals: int) -> str:
  """Puts the parts of a cell under one another, so that lines stay short."""
  value, *rest = map(escape, tables.cell(row, decimals))
  return value + ''.join(f'<small>{part}</small>' for part in rest)


def _figures(record: Record, pictures: Mapping[str, bytes]) -> str:
  parts = []
  for figure in record.figures:
    caption = escape(figure.caption)
    code = base64.b64encode(pictures[figure.name]).decode()
    parts.append(
      f'<figure><div class="wide"><img alt="{caption}" '
      f'src="data:image/png;base64,{code}"></div>'
      f'<figcaption>{caption}</figcaption></figure>'
    )
  return '\n'.join(parts)


def _settings(values: Any) -> str:
  lines = [
    f'<tr><td class="name">{escape(name)}</td><td>{escape(text)}</td></tr>'
    for name, text in _flat(values)
  ]
  rows = '\n'.join(lines)
  if not lines:
    return ''
  return f'<div class="wide"><table class="settings">\n{rows}\n</table></div>'


def _flat(values: Any, name: str = '') -> list[tuple[str, str]]:
  """Flattens nested settings into (dotted name, value) pairs."""
  if isinstance(values, Mapping) and values:
    return [
      pair
      for key, value in values.items()
      for pair in _flat(value, f'{name}.{key}' if name else str(key))
    ]
  return [(name, _setting(values))] if name else []


def _setting(value: Any) -> str:
  """Writes the value of a setting as one would say it."""
  if value is None or value in ('', [], {}):
    return tables.EMPTY
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, list):
    return ', '.join(map(_setting, value))
  return value if isinstance(value, str) else json.dumps(value)
