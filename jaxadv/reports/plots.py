"""Figures drawn from a record and its arrays; colours for all eyes.

The functions named in `KINDS` take the record, its arrays and the options of
a `record.Figure`, and return a Matplotlib figure.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
import matplotlib.ticker
import numpy as np
import PIL.Image

from jaxadv.errors import UserError
from jaxadv.metrics.roc import auc, roc_curve
from jaxadv.reports.record import Plot, Record, Table
from jaxadv.reports.rows import Row
from jaxadv.reports.tables import FEW, FOOTNOTE, lay_out, select, words
from jaxadv.storage import replacing
from jaxadv.units import in_image_units

Arrays = Mapping[str, np.ndarray]

# Okabe and Ito's palette: eight colours that colour-blind readers tell apart.
PALETTE = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#CC79A7',
  '#E69F00',
  '#56B4E9',
  '#000000',
  '#999999',
)
# Lines differ in more than colour.
_DASHES = ('-', '--', '-.', ':')
_COLOURS = matplotlib.colormaps['PuOr_r'].with_extremes(bad='0.9')
MAX_BYTES = 300_000
_DPI = 150


def draw(figure: Plot, record: Record, arrays: Arrays, path: Path) -> None:
  """Draws a figure into a PNG file of at most `MAX_BYTES`.

  Args:
    figure: What to draw.
    record: The record it is drawn from.
    arrays: The arrays it is drawn from.
    path: The file, replaced whole.

  Raises:
    UserError: If there is no such kind of figure or an array is absent.
    DataError: If the disk is full.
  """
  if figure.kind not in KINDS:
    raise UserError(
      f'no figure of the kind {figure.kind!r}; choose from {", ".join(KINDS)}'
    )
  try:
    drawn = KINDS[figure.kind](record, arrays, **figure.options)
  except KeyError as error:
    raise UserError(
      f'the figure {figure.name!r} needs {error}, which the record lacks'
    ) from error
  with replacing(path) as file:
    file.write(_png(drawn))


def _png(figure: matplotlib.figure.Figure) -> bytes:
  """Renders a PNG: fewer colours, then fewer dots, until it is small."""
  for dpi in (_DPI, 125, 100, 80, 60):
    file = io.BytesIO()
    figure.savefig(file, dpi=dpi, bbox_inches='tight', facecolor='white')
    if file.tell() > MAX_BYTES:
      picture = PIL.Image.open(file).convert('RGB').quantize(256)
      file = io.BytesIO()
      picture.save(file, 'PNG', optimize=True)
    if file.tell() <= MAX_BYTES:
      break
  return file.getvalue()


def _nothing() -> matplotlib.figure.Figure:
  """Gives a figure for what has nothing to show, such as no pictures."""
  figure = matplotlib.figure.Figure(figsize=(4.2, 0.6))
  figure.text(0.5, 0.5, 'nothing to show', ha='center', va='center')
  return figure


def roc_curves(
  record: Record,
  arrays: Arrays,
  *,
  panels: Mapping[str, Mapping[str, Sequence[str]]],
) -> matplotlib.figure.Figure:
  """Draws ROC curves, a panel a backbone (or whatever the panels are).

  Args:
    record: Not used.
    arrays: Scores, higher means more likely attacked.
    panels: {title: {label of a curve: (name of the clean pictures' scores,
      name of the attacked pictures' scores)}}.

  Returns:
    The figure; the legend holds each curve's AUC in per cent.
  """
  if not panels:
    return _nothing()
  across = min(len(panels), 3)
  down = math.ceil(len(panels) / across)
  figure = matplotlib.figure.Figure(
    figsize=(4.6 * across, 4.6 * down), layout='constrained'
  )
  axes = figure.subplots(down, across, squeeze=False).ravel()
  for axis in axes[len(panels) :]:
    axis.remove()
  for axis, (title, curves) in zip(axes, panels.items(), strict=False):
    axis.plot([0, 1], [0, 1], color='0.6', lw=1, label='chance 50.0')
    for index, (label, names) in enumerate(curves.items()):
      clean, attacked = (arrays[name] for name in names)
      scores = np.concatenate([clean, attacked])
      positive = np.arange(scores.size) >= clean.size
      fpr, tpr, _ = roc_curve(scores, positive)
      axis.plot(
        fpr,
        tpr,
        color=PALETTE[index % len(PALETTE)],
        ls=_DASHES[index % len(_DASHES)],
        lw=1.6,
        label=f'{label} {100 * auc(scores, positive):.1f}',
      )
    axis.set(
      title=title,
      xlabel='false-positive rate (clean called attacked)',
      ylabel='true-positive rate (attacked found)',
      aspect='equal',
      xlim=(-0.01, 1.01),
      ylim=(-0.01, 1.01),
    )
    axis.legend(title='AUC (%)', fontsize=8, loc='lower right')
    axis.grid(alpha=0.25)
  return figure


def curves(
  record: Record,
  arrays: Arrays,
  *,
  panels: Mapping[str, Mapping[str, str]],
  xlabel: str,
  ylabel: str,
  ticks: Mapping[str, Mapping[str, float]] = {},
) -> matplotlib.figure.Figure:
  """Draws curves in per cent with bands for their intervals.

  Args:
    record: Not used.
    arrays: A curve is float64[4, P]: x, value, and both ends of the interval.
      Up to 20 points are marked with dots.
    panels: {title: {label of a curve: name of its array}}. A label has the
      same colour in all panels; the first one is black.
    xlabel: Of every panel.
    ylabel: Of every panel.
    ticks: {title of a panel: {text: x}}; other panels get plain numbers.

  Returns:
    The figure, with one legend.
  """
  if not panels:
    return _nothing()
  labels = list(
    dict.fromkeys(label for lines in panels.values() for label in lines)
  )
  colours = ('black', *(c for c in PALETTE if c != '#000000'))
  figure = matplotlib.figure.Figure(
    figsize=(1.6 + 4.2 * len(panels), 4.2), layout='constrained'
  )
  axes = figure.subplots(1, len(panels), squeeze=False).ravel()
  handles = {}
  for axis, (title, lines) in zip(axes, panels.items(), strict=True):
    for label, name in lines.items():
      index = labels.index(label)
      x, value, low, high = arrays[name]
      look = dict(color=colours[index % len(colours)])
      axis.fill_between(x, low, high, alpha=0.12, lw=0, **look)
      (handles[label],) = axis.plot(
        x,
        value,
        ls=_DASHES[index % len(_DASHES)],
        marker='o' if len(x) <= 20 else None,
        ms=4,
        lw=2.2 if index == 0 else 1.6,
        **look,
      )
    axis.set(
      title=title, xlabel=xlabel, ylabel=ylabel, xlim=(0, None), ylim=(-1, 101)
    )
    if title in ticks:
      axis.set_xticks([*ticks[title].values()], [*ticks[title]], fontsize=8)
    axis.grid(alpha=0.25)
  figure.legend(
    handles.values(), handles, fontsize=8, loc='outside right upper'
  )
  return figure


def transfer_matrix(
  record: Record,
  arrays: Arrays,
  *,
  metric: str,
  filters: Mapping[str, Any],
  title: str = '',
  row: str = 'trained_on',
  column: str = 'tested_on',
  groups: Mapping[str, Sequence[str]] | None = None,
) -> matplotlib.figure.Figure:
  """Draws a heat map of AUCs in per cent, centred on chance.

  Under each number stands the printed one, in parentheses; cells of training
  and test on the same kind are framed.

  Args:
    record: Its rows fill the cells.
    arrays: Not used.
    metric: Of the rows to show.
    filters: Labels of the rows to show, such as {'backbone': 'VGG16'}.
    title: Heading; the values of `filters` if empty.
    row: Label of the kind trained on.
    column: Label of the kind tested on.
    groups: {category: its kinds}, in the order of the axes; as they occur in
      the record if None.

  Returns:
    The figure.
  """
  groups = groups or {}
  order = [name for names in groups.values() for name in names]
  layout = Table(
    '', metric, (row,), column, columns=tuple(order), filters=filters
  )
  grids = lay_out(record, layout)
  if not grids:
    return _nothing()
  (grid,) = grids
  cells = {
    (line, name): shown
    for (line,), rows in grid.lines
    for name, shown in zip(grid.columns, rows, strict=True)
  }
  lines = sorted(
    (line for (line,), _ in grid.lines),
    key=lambda line: order.index(line) if line in order else len(order),
  )
  values = np.array(
    [
      [
        shown.value if (shown := cells[line, name]) else np.nan
        for name in grid.columns
      ]
      for line in lines
    ]
  )
  down, across = values.shape
  figure = matplotlib.figure.Figure(
    figsize=(2.2 + 0.82 * across, 1.7 + 0.62 * down), layout='constrained'
  )
  axis = figure.subplots()
  image = axis.imshow(values, cmap=_COLOURS, vmin=0, vmax=100, aspect='auto')
  for y, line in enumerate(lines):
    for x, name in enumerate(grid.columns):
      _annotate(axis, x, y, cells[line, name])
      if line == name:
        frame = matplotlib.patches.Rectangle(
          (x - 0.46, y - 0.46), 0.92, 0.92, fill=False, lw=1.6
        )
        axis.add_patch(frame)
  _separate(axis, groups, lines, grid.columns)
  axis.set_xticks(range(across), grid.columns)
  axis.set_yticks(range(down), lines)
  axis.tick_params(length=0)
  axis.set(
    xlabel=words(column),
    ylabel=words(row),
    title=title or ', '.join(map(str, filters.values())),
  )
  bar = figure.colorbar(image, ax=axis, fraction=0.05, pad=0.02)
  bar.set_label(f'{metric}; 50 is chance')
  notes = ['framed: trained and tested on the same kind']
  if any(shown.paper is not None for shown in grid.rows):
    notes.append('(in parentheses): the paper')
  if any(shown.few for shown in grid.rows):
    notes.append(FOOTNOTE)
  figure.supxlabel('\n'.join(notes), fontsize=8, color='0.3')
  return figure


def _annotate(axis: Any, x: int, y: int, shown: Row | None) -> None:
  if shown is None:
    axis.text(x, y, '–', ha='center', va='center', color='0.4')
    return
  red, green, blue, _ = _COLOURS(shown.value / 100)
  light = 0.3 * red + 0.59 * green + 0.11 * blue
  colour = 'black' if light > 0.52 else 'white'
  at = dict(ha='center', color=colour)
  number = f'{shown.value:.1f}' + FEW * shown.few
  if shown.paper is None:
    axis.text(x, y, number, va='center', fontsize=10, **at)
    return
  axis.text(x, y - 0.02, number, va='bottom', fontsize=10, **at)
  axis.text(x, y + 0.08, f'({shown.paper:.1f})', va='top', fontsize=7.5, **at)


def _separate(
  axis: Any,
  groups: Mapping[str, Sequence[str]],
  lines: Sequence[str],
  columns: Sequence[str],
) -> None:
  """Draws lines between categories and names them along the top."""
  for names in groups.values():
    for kinds, line in ((columns, axis.axvline), (lines, axis.axhline)):
      last = max((kinds.index(k) for k in names if k in kinds), default=None)
      if last is not None and last + 1 < len(kinds):
        line(last + 0.5, color='black', lw=1.4)
  ticks = {
    np.mean([columns.index(k) for k in names if k in columns]): category
    for category, names in groups.items()
    if set(names) & set(columns)
  }
  if ticks:
    top = axis.secondary_xaxis('top')
    top.set_xticks(list(ticks), list(ticks.values()), fontstyle='italic')
    top.tick_params(length=0)


def interval_bars(
  record: Record,
  arrays: Arrays,
  *,
  metric: str,
  category: str,
  series: str,
  filters: Mapping[str, Any] = {},
  base: float = 50.0,
  title: str = '',
) -> matplotlib.figure.Figure:
  """Draws bars with intervals that rise, or hang, from the chance line.

  Args:
    record: Its rows are the bars.
    arrays: Not used.
    metric: Of the rows to show.
    category: Key of the groups along the axis, such as the kind of attack.
    series: Key of the bars side by side, such as the backbone.
    filters: Labels and values of the rows to show.
    base: Where bars begin: chance, or 0.
    title: Heading.

  Returns:
    The figure; printed numbers are diamonds.
  """
  rows = select(record, metric, filters)
  if not rows:
    return _nothing()
  names = list(dict.fromkeys(str(row.labels[category]) for row in rows))
  kinds = list(dict.fromkeys(str(row.labels[series]) for row in rows))
  figure = matplotlib.figure.Figure(
    figsize=(1.6 + 0.45 * len(names) * (len(kinds) + 0.6), 4.2),
    layout='constrained',
  )
  axis = figure.subplots()
  width = 0.8 / len(kinds)
  printed = []
  for index, kind in enumerate(kinds):
    own = [row for row in rows if str(row.labels[series]) == kind]
    x = np.array([names.index(str(row.labels[category])) for row in own])
    x = x + (index - (len(kinds) - 1) / 2) * width
    value = np.array([row.value for row in own])
    ends = np.array([_ends(row) for row in own]).T
    axis.bar(
      x,
      value - base,
      0.92 * width,
      bottom=base,
      color=PALETTE[index % len(PALETTE)],
      label=kind,
      hatch=('', '//', '..', 'xx')[index // 2 % 4],
      edgecolor='white',
    )
    # White under black stands out on every bar.
    for colour, thickness in (('white', 3), ('black', 1.2)):
      axis.errorbar(
        x,
        value,
        yerr=np.abs(ends - value),
        fmt='none',
        ecolor=colour,
        elinewidth=thickness,
        capsize=3,
      )
    for at, row, end in zip(x, own, ends[1], strict=True):
      axis.annotate(
        f'{row.value:.0f}' + FEW * row.few,
        (at, max(end, base)),
        xytext=(0, 3),
        textcoords='offset points',
        ha='center',
        fontsize=8,
      )
      if row.paper is not None:
        printed.append((at, row.paper))
  if printed:
    axis.plot(*zip(*printed, strict=True), 'kD', mfc='white', label='paper')
  axis.axhline(base, color='black', lw=1)
  axis.set_xticks(range(len(names)), names)
  axis.set(xlabel=words(category), ylabel=metric, title=title)
  axis.margins(y=0.08)
  axis.yaxis.set_major_locator(matplotlib.ticker.MultipleLocator(10))
  axis.grid(axis='y', alpha=0.25)
  axis.set_axisbelow(True)
  axis.legend(
    title=words(series),
    fontsize=8,
    loc='upper left',
    bbox_to_anchor=(1.01, 1),
  )
  start = f'bars start at chance ({base:.0f}); ' if base else ''
  notes = [f'{start}lines: 95 % intervals']
  if any(row.few for row in rows):
    notes.append(FOOTNOTE)
  figure.supxlabel('\n'.join(notes), fontsize=8, color='0.3')
  return figure


def _ends(row: Row) -> tuple[float, float]:
  return (
    row.value if row.ci_low is None else row.ci_low,
    row.value if row.ci_high is None else row.ci_high,
  )


def example_pictures(
  record: Record,
  arrays: Arrays,
  *,
  kinds: Sequence[str],
  clean: str = 'examples/clean',
  attacked: str = 'examples/attacked',
  labels: Sequence[Sequence[Sequence[str]]] = (),
  without_clean: Sequence[str] = (),
  num_examples: int = 3,
) -> matplotlib.figure.Figure:
  """Draws pictures of every kind with their perturbation made visible.

  The change is shown as 0.5 + scale * delta; the scale stands beside the row,
  one for all pictures of a kind.

  Args:
    record: Not used.
    arrays: Pictures, [K, N, H, W, C] for K kinds and N examples, uint8 or
      floats in [0, 1].
    kinds: Names of the K kinds.
    clean: Name of the array of clean pictures.
    attacked: Name of the array of their attacked versions.
    labels: For every kind and example (true class, predicted class), or () to
      leave them out.
    without_clean: Kinds that have no clean version (natural ones); their
      clean pictures are not looked at.
    num_examples: At most so many of the N examples are drawn.

  Returns:
    The figure.
  """
  if not len(kinds) or not arrays[attacked].size:
    return _nothing()
  before = in_image_units(arrays[clean][:, :num_examples])
  after = in_image_units(arrays[attacked][:, :num_examples])
  examples = after.shape[1]
  figure = matplotlib.figure.Figure(
    figsize=(1.1 + 3.25 * examples, 0.7 + 1.22 * len(kinds))
  )
  note = 'change: 0.5 + factor × (attacked − clean)'
  if labels:
    note += '; over attacked pictures: true → predicted class'
  figure.text(0.5, 0.01, note, ha='center', fontsize=8, color='0.3')
  # A narrow empty column between two examples.
  widths = ([1, 1, 1, 0.25] * examples)[:-1]
  grid = figure.add_gridspec(
    len(kinds),
    len(widths),
    width_ratios=widths,
    wspace=0.06,
    hspace=0.28,
    left=1.1 / figure.get_figwidth(),
    right=0.995,
    bottom=0.28 / figure.get_figheight(),
    top=1 - 0.42 / figure.get_figheight(),
  )
  for y, kind in enumerate(kinds):
    delta = after[y] - before[y]
    scale = visible_scale(delta)
    shown = [before[y], after[y], np.clip(0.5 + scale * delta, 0, 1)]
    for index in range(examples):
      for part in range(3):
        axis = figure.add_subplot(grid[y, 4 * index + part])
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if part != 1 and kind in without_clean:
          axis.text(
            0.5,
            0.5,
            'no clean\nversion',
            ha='center',
            va='center',
            color='0.45',
            fontsize=8,
          )
        else:
          picture = shown[part][index]
          if picture.shape[-1] == 1:
            picture = np.repeat(picture, 3, axis=-1)
          axis.imshow(picture, interpolation='nearest')
        if y == 0:
          axis.annotate(
            ('clean', 'attacked', 'change')[part],
            (0.5, 1),
            xytext=(0, 16),
            xycoords='axes fraction',
            textcoords='offset points',
            ha='center',
            fontsize=10,
            weight='bold',
          )
        if part == 1 and labels:
          true, predicted = labels[y][index]
          axis.set_title(
            f'{shorten(true)} → {shorten(predicted)}', fontsize=8, pad=3
          )
        if index == part == 0:
          stated = '' if kind in without_clean else f'\nchange × {scale:g}'
          axis.annotate(
            f'{kind}{stated}',
            (0, 0.5),
            xytext=(-6, 0),
            xycoords='axes fraction',
            textcoords='offset points',
            ha='right',
            va='center',
            fontsize=9,
          )
  return figure


def score_histogram(
  record: Record,
  arrays: Arrays,
  *,
  scores: Mapping[str, str],
  threshold: float | None = None,
  xlabel: str = 'score (logit)',
) -> matplotlib.figure.Figure:
  """Draws how scores are distributed, and where the threshold lies.

  Args:
    record: Not used.
    arrays: Scores, [n] each, higher means more likely attacked.
    scores: {label of a group: name of its array}.
    threshold: Above it a picture is called attacked; None for none.
    xlabel: What the score is.

  Returns:
    The figure; each group is shown in per cent of its pictures.
  """
  groups = {label: arrays[name] for label, name in scores.items()}
  groups = {label: values for label, values in groups.items() if values.size}
  if not groups:
    return _nothing()
  edges = np.histogram_bin_edges(
    np.concatenate([*groups.values()]), bins=30
  ).tolist()
  figure = matplotlib.figure.Figure(figsize=(6.4, 3.6), layout='constrained')
  axis = figure.subplots()
  for index, (label, values) in enumerate(groups.items()):
    axis.hist(
      values,
      edges,
      weights=np.full(len(values), 100 / len(values)),
      histtype='step',
      lw=1.8,
      color=PALETTE[index % len(PALETTE)],
      ls=_DASHES[index % len(_DASHES)],
      label=f'{label} ({len(values)})',
    )
  if threshold is not None:
    axis.axvline(
      threshold, color='black', lw=1, label=f'threshold {threshold:.3g}'
    )
  axis.set(xlabel=xlabel, ylabel='pictures (%)')
  axis.grid(axis='y', alpha=0.25)
  axis.legend(fontsize=8)
  return figure


def field(
  record: Record,
  arrays: Arrays,
  *,
  values: str,
  extent: str,
  points: Mapping[str, str],
  label: str,
) -> matplotlib.figure.Figure:
  """Draws a number over a plane, with points in it.

  Args:
    record: Not used.
    arrays: The number, float[rows, columns], first row lowest; the corners;
      points, float[n, 2].
    values: Name of the array of the number.
    extent: Name of the array (left, right, bottom, top).
    points: {label of a group: name of its array}.
    label: What the number is.

  Returns:
    The figure.
  """
  figure = matplotlib.figure.Figure(figsize=(5.6, 4.2), layout='constrained')
  axis = figure.subplots()
  shown = axis.imshow(
    arrays[values], origin='lower', extent=tuple(arrays[extent]), cmap='viridis'
  )
  for index, (name, array) in enumerate(points.items()):
    x, y = arrays[array].T
    axis.scatter(
      x,
      y,
      s=16,
      marker='o^s'[index % 3],
      color=('white', '#ff7f0e', '#56b4e9')[index % 3],
      edgecolor='black',
      linewidth=0.6,
      label=name,
    )
  axis.set(xlabel='$x_1$', ylabel='$x_2$')
  axis.legend(fontsize=8, loc='upper left')
  figure.colorbar(shown, ax=axis, label=label)
  return figure


def titled_pictures(
  record: Record,
  arrays: Arrays,
  *,
  pictures: str,
  titles: Sequence[Sequence[str]],
) -> matplotlib.figure.Figure:
  """Draws pictures, four in a line, with a few words over each.

  Args:
    record: Not used.
    arrays: The pictures, uint8[n, H, W, 3].
    pictures: Name of their array.
    titles: For every picture the lines of text over it.

  Returns:
    The figure.
  """
  if not len(titles):
    return _nothing()
  across = min(len(titles), 4)
  down = math.ceil(len(titles) / across)
  figure = matplotlib.figure.Figure(
    figsize=(2 * across, 2.4 * down), layout='constrained'
  )
  for axis in (axes := figure.subplots(down, across, squeeze=False).ravel()):
    axis.set_axis_off()
  for axis, picture, lines in zip(axes, arrays[pictures], titles, strict=False):
    axis.imshow(picture, interpolation='nearest')
    axis.set_title('\n'.join(shorten(line, 24) for line in lines), fontsize=8)
  return figure


def visible_scale(delta: np.ndarray) -> float:
  """Picks the factor that makes a change visible: 0.5, 1, 2, 5, 10, ...

  Args:
    delta: Attacked minus clean, any shape, in [-1, 1].

  Returns:
    The largest such factor up to 500 that leaves 99 % of the values within
    [-0.5, 0.5]; 0.5 if none does, 1 for no change at all.
  """
  size = np.quantile(np.abs(delta), 0.99) or np.abs(delta).max()
  if not size > 0:
    return 1.0
  steps = [0.5, *(m * 10**e for e in range(3) for m in (1, 2, 5))]
  return float(max([s for s in steps if s * size <= 0.5], default=0.5))


def shorten(name: str, length: int = 12) -> str:
  """Cuts a class name to fit over a picture."""
  name = str(name)
  return name if len(name) <= length else name[: length - 1] + '…'


KINDS: dict[str, Callable[..., matplotlib.figure.Figure]] = {
  'roc_curves': roc_curves,
  'curves': curves,
  'transfer_matrix': transfer_matrix,
  'interval_bars': interval_bars,
  'example_pictures': example_pictures,
  'score_histogram': score_histogram,
  'field': field,
  'titled_pictures': titled_pictures,
}
