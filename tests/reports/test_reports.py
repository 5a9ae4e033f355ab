"""What a run leaves for its readers, on the made-up record of `example.py`."""

import csv
import dataclasses
import io
import json
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import rich.console

from jaxadv import reports
from jaxadv.errors import DataError, UserError
from jaxadv.reports import html, plots, tables
from tests.reports.example import GROUPS, KINDS, example


@pytest.fixture(scope='module')
def made():
  return example(backbones=('VGG16',))


@pytest.fixture(scope='module')
def workdir(made, tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  reports.write_report(*made, folder)
  return folder


def _row(**changes):
  row = reports.Row({'kind': 'FGSM'}, 'AUC (%)', 90.0, 85.0, 95.0, 150, 93.0)
  return dataclasses.replace(row, **changes)


def _record(*rows, **changes):
  return reports.Record('toy', 'quick', {}, {}, rows=rows, **changes)


def test_record_survives_the_disk(made, workdir):
  record, arrays = made
  found, found_arrays = reports.read(workdir)
  for field in ('rows', 'claims', 'missing', 'tables', 'question', 'answer'):
    assert getattr(found, field) == getattr(record, field)
  assert found_arrays.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(found_arrays[name], array)


def test_results_have_the_promised_form(workdir):
  contents = json.loads((workdir / 'results.json').read_text())
  assert {
    'experiment',
    'variant',
    'config',
    'provenance',
    'claims',
    'rows',
    'missing',
  } <= contents.keys()
  assert contents['claims'][0].keys() == {
    'claim',
    'verdict',
    'numbers',
    'paper',
    'note',
  }
  first = contents['rows'][0]
  assert first['backbone'] == 'VGG16' and first['trained_on'] == 'IN-A'
  fields = {'metric', 'value', 'ci_low', 'ci_high', 'n', 'paper'}
  assert first.keys() == fields | {'backbone', 'trained_on', 'tested_on'}


@pytest.mark.parametrize('name', ['value', 'ci_low', 'ci_high', 'paper'])
@pytest.mark.parametrize('number', [np.nan, np.inf])
def test_numbers_that_are_not_finite_stop_the_record(tmp_path, name, number):
  reports.write(_record(_row()), {}, tmp_path)
  with pytest.raises(DataError, match=f"{name} of the AUC .*'FGSM'"):
    reports.write(_record(_row(**{name: number})), {}, tmp_path)
  assert reports.read(tmp_path)[0].rows == (_row(),)


def test_only_value_is_compulsory(tmp_path):
  bare = reports.Row({'kind': 'FGSM'}, 'AUC (%)', 90.0)
  reports.write(_record(bare), {}, tmp_path)
  assert reports.read(tmp_path)[0].rows == (bare,)
  with pytest.raises(DataError, match='value'):
    reports.write(_record(_row(value=None)), {}, tmp_path)


def test_labels_may_not_hide_fields(tmp_path):
  with pytest.raises(UserError, match='metric'):
    reports.write(_record(_row(labels={'metric': 'x'})), {}, tmp_path)


def test_unknown_verdict_names_the_known_ones():
  with pytest.raises(UserError, match='held, did not, cannot tell'):
    reports.Claim('it works', 'maybe')


def test_numpy_values_become_plain(tmp_path):
  row = _row(
    labels={'seed': np.int32(3)}, value=np.float32(0.5), n=np.int64(120)
  )
  record = _record(row, missing=('a',))
  claim = reports.Claim('c', 'held', {'x': np.array([1.0, 0.5, 1.5])})
  record = dataclasses.replace(record, claims=(claim,), config={'k': (1, 2)})
  reports.write(record, {'a': np.arange(3)}, tmp_path)
  found, _ = reports.read(tmp_path)
  assert found.rows[0] == _row(labels={'seed': 3}, value=0.5, n=120)
  assert found.claims[0].numbers == {'x': [1.0, 0.5, 1.5]}
  assert found.config == {'k': [1, 2]}


def test_broken_record_is_named(tmp_path):
  with pytest.raises(DataError, match='results.json'):
    reports.read(tmp_path)
  (tmp_path / 'results.json').write_text('{"rows": []}')
  with pytest.raises(DataError, match='results.json is no record'):
    reports.read(tmp_path)


def test_provenance_names_versions_but_no_machine(tmp_path):
  found = reports.provenance([0, 1], 12.34, {'digits': 'abc'})
  assert found['versions']['jax'] and found['versions']['python']
  assert found['seeds'] == [0, 1] and found['seconds'] == 12.3
  assert sum(found['devices'].values()) >= 1
  assert found['git_commit'] is None or re.match(
    r'[0-9a-f]{40}(-dirty)?$', found['git_commit']
  )
  text = json.dumps(found)
  assert socket.gethostname() not in text
  assert '"/' not in text


def test_no_absolute_path_reaches_a_reader(workdir):
  for name in ('results.json', 'table.md', 'table.csv', 'report.html'):
    text = (workdir / name).read_text()
    assert '/somewhere' not in text and str(workdir) not in text
  assert reports.read(workdir)[0].config['data_dir'] == 'tfds'


def test_everything_is_drawn_again_from_the_record_alone(workdir, tmp_path):
  for name in ('results.json', 'arrays.npz'):
    shutil.copy(workdir / name, tmp_path / name)
  reports.render(tmp_path)
  made = sorted(p.relative_to(workdir) for p in workdir.rglob('*.*'))
  assert made == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob('*.*'))
  for name in made:
    assert (workdir / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_reading_and_drawing_need_no_jax():
  code = 'import sys, jaxadv.reports; sys.exit("jax" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_claims_are_sentences():
  claim = reports.Claim(
    'seen kinds are detected',
    'did not',
    {'AUC': [93.126, 91, 95.25], 'pictures': 1500, 'note': 'weak'},
  )
  assert tables.sentence(claim) == (
    'Did not hold: seen kinds are detected (AUC 93.13 [91, 95.25], pictures '
    '1,500, note weak).'
  )
  assert tables.sentence(reports.Claim('a', 'held')) == 'Held: a.'


def test_markdown_puts_claims_first_and_cells_in_place(workdir, made):
  text = (workdir / 'table.md').read_text()
  assert text.index('Held: seen') < text.index('| trained on |')
  lines = [line.split(' | ') for line in text.splitlines() if '|' in line]
  heading = next(line for line in lines if line[0] == '| trained on')
  line = next(line for line in lines if line[0] == '| PGD')
  (row,) = [
    row
    for row in made[0].rows
    if row.labels.get('trained_on') == 'PGD'
    and row.labels['tested_on'] == 'NI+'
  ]
  assert line[heading.index('NI+')] == (
    f'{row.value:.1f} [{row.ci_low:.1f}, {row.ci_high:.1f}] '
    f'(paper {row.paper:.1f})'
  )
  assert '75–150 |' in line[-1]


def test_csv_holds_unrounded_numbers(workdir, made):
  with open(workdir / 'table.csv', newline='') as file:
    lines = list(csv.reader(file))
  assert lines[0] == ['claim', 'verdict', 'numbers', 'paper', 'note']
  assert lines[2][1] == 'did not'
  heading = next(line for line in lines if line[:1] == ['trained_on'])
  line = lines[lines.index(heading) + 1 + KINDS.index('DF')]
  values = dict(zip(heading, line, strict=True))
  (row,) = [
    row
    for row in made[0].rows
    if row.labels.get('trained_on') == 'DF' and row.labels['tested_on'] == 'HSV'
  ]
  assert float(values['HSV value']) == row.value
  assert float(values['HSV paper']) == row.paper
  assert values['HSV n'] == '150' and values['DF paper'] == ''


def test_few_pictures_are_flagged_and_explained():
  table = reports.Table('T', 'AUC (%)', (), 'kind')
  for n, flagged in ((99, True), (100, False)):
    text = tables.markdown(_record(_row(n=n), tables=(table,)))
    assert ('90.0†' in text) == flagged
    assert ('fewer than 100' in text) == flagged


def test_two_rows_in_one_place_are_refused():
  table = reports.Table('T', 'AUC (%)', (), 'kind')
  with pytest.raises(UserError, match='FGSM'):
    tables.lay_out(_record(_row(), _row()), table)


def test_layout_filters_splits_and_orders():
  rows = [
    _row(labels={'net': net, 'kind': kind, 'seed': seed}, value=value)
    for value, (net, kind, seed) in enumerate(
      (net, kind, seed) for net in 'ab' for kind in 'yx' for seed in (0, 1)
    )
  ]
  table = reports.Table(
    'T',
    'AUC (%)',
    ('seed',),
    'kind',
    split='net',
    columns=('x', 'absent'),
    filters={'seed': 1},
  )
  first, second = tables.lay_out(_record(*rows), table)
  assert first.title == 'T: a' and second.title == 'T: b'
  assert first.columns == ('x', 'y')
  ((line, cells),) = second.lines
  assert line == ('1',) and [cell.value for cell in cells] == [7, 5]


def test_terminal_table_fits_100_characters(made):
  console = rich.console.Console(width=100, file=io.StringIO())
  tables.print_table(made[0], console)
  text = console.file.getvalue()
  assert '…' not in text
  line = next(line for line in text.splitlines() if line.startswith(' NI-'))
  assert len(re.findall(r'\(\d+\)', line)) == 7


@pytest.mark.parametrize('n, told', [(150, ', n = 150'), (None, '')])
def test_terminal_tells_a_number_of_pictures_if_there_is_one(n, told):
  console = rich.console.Console(width=100, file=io.StringIO())
  table = reports.Table('T', 'AUC (%)', (), 'kind')
  row = _row(n=n, paper=None)
  tables.print_table(_record(row, tables=(table,)), console)
  assert console.file.getvalue().splitlines()[0] == f'T, AUC (%){told}'


def test_page_is_self_contained_and_escaped(workdir):
  text = (workdir / 'report.html').read_text()
  assert re.findall(r'(?:src|href)="(?!data:)', text) == []
  assert 'http' not in text and '<script' not in text
  assert text.count('<img') == len(reports.read(workdir)[0].figures)
  record = _record(missing=('a <b> & c',), question='1 < 2')
  page = html.page(record, {})
  assert 'a &lt;b&gt; &amp; c' in page and '1 &lt; 2' in page
  assert '<h2>Figures' not in page


def test_controls_have_a_section_of_their_own(workdir):
  text = (workdir / 'report.html').read_text()
  controls = text.index('Negative controls')
  assert text.index('shuffled labels') > controls
  assert text.index('trained on') < controls


def test_figures_come_before_tables(workdir):
  """A reader looks first."""
  page = (workdir / 'report.html').read_text()
  body = page[page.index('<body>') :]
  order = ['class="answer"', '<figure', '<table', 'class="settings"']
  assert [*map(body.index, order)] == sorted(map(body.index, order))
  text = (workdir / 'table.md').read_text()
  for figure in reports.read(workdir)[0].figures:
    assert (workdir / 'figures' / f'{figure.name}.png').exists()
    assert text.index(f'(figures/{figure.name}.png)') < text.index('| trained')
  assert text.index('Held: seen') < text.index('(figures/')


def test_whatever_is_wide_scrolls_in_a_box_of_its_own(workdir):
  text = (workdir / 'report.html').read_text()
  assert '.wide { overflow-x: auto; }' in text
  for tag in ('<table', '<img'):
    assert text.count(tag) == text.count(f'<div class="wide">{tag}') > 0


def test_settings_are_told_in_words():
  config = {'attacks': ['pgd', 'ddn'], 'mean': [], 'checks': True, 'seed': 0}
  record = dataclasses.replace(_record(), config=config)
  page = html.page(record, {})
  for name, text in (
    ('attacks', 'pgd, ddn'),
    ('mean', '–'),
    ('checks', 'yes'),
    ('seed', '0'),
  ):
    assert f'<td class="name">{name}</td><td>{text}</td>' in page


def test_figures_are_small_and_sharp(workdir):
  for path in (workdir / 'figures').glob('*.png'):
    assert path.stat().st_size <= plots.MAX_BYTES
    with PIL.Image.open(path) as picture:
      assert picture.width >= 600


def test_large_noisy_pictures_make_a_small_file():
  noise = np.random.default_rng(0).random((2, 2, 96, 96, 3))
  arrays = {'examples/clean': noise, 'examples/attacked': noise[::-1]}
  figure = plots.example_pictures(_record(), arrays, kinds=['a', 'b'])
  assert 0 < len(plots._png(figure)) <= plots.MAX_BYTES


def _texts(axis):
  return [text.get_text() for text in axis.texts]


def test_heat_map_shows_every_number_and_frames_the_diagonal(made):
  options = {'metric': 'AUC (%)', 'filters': {'backbone': 'VGG16'}}
  figure = plots.transfer_matrix(*made, groups=GROUPS, **options)
  axis = figure.axes[0]
  texts = _texts(axis)
  shown = [row for row in made[0].rows if row.metric == 'AUC (%)']
  for row in shown:
    assert f'{row.value:.1f}' + '†' * (row.n < 100) in texts
    assert row.paper is None or f'({row.paper:.1f})' in texts
  assert len(axis.patches) == 8
  values = axis.images[0].get_array()
  value = shown[3 * 8 + 6].value  # trained on FGSM, tested on NI-
  assert values[3, 6] == value
  assert [t.get_text() for t in axis.get_yticklabels()] == list(KINDS)
  assert axis.get_xlabel() == 'tested on' and axis.get_ylabel() == 'trained on'


def test_heat_map_leaves_unmeasured_cells_open():
  row = _row(labels={'trained_on': 'a', 'tested_on': 'b'})
  other = _row(labels={'trained_on': 'b', 'tested_on': 'a'})
  figure = plots.transfer_matrix(
    _record(row, other), {}, metric='AUC (%)', filters={}
  )
  assert _texts(figure.axes[0]).count('–') == 2


def test_bars_stand_where_the_numbers_are(made):
  figure = plots.interval_bars(
    *made, metric='seen AUC (%)', category='kind', series='backbone'
  )
  rows = [row for row in made[0].rows if row.metric == 'seen AUC (%)']
  tops = [bar.get_y() + bar.get_height() for bar in figure.axes[0].patches]
  np.testing.assert_allclose(tops, [row.value for row in rows])


def test_roc_legend_holds_the_auc(made):
  names = ['scores/VGG16/DF/clean', 'scores/VGG16/DF/PGD']
  figure = plots.roc_curves(*made, panels={'VGG16': {'PGD': names}})
  (row,) = [
    row
    for row in made[0].rows
    if row.labels.get('trained_on') == 'DF' and row.labels['tested_on'] == 'PGD'
  ]
  labels = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
  assert labels == ['chance 50.0', f'PGD {row.value:.1f}']


def test_change_is_drawn_to_the_stated_scale():
  clean = np.full((1, 1, 4, 4, 3), 100, np.uint8)
  attacked = clean + np.uint8(8)
  figure = plots.example_pictures(
    _record(),
    {'examples/clean': clean, 'examples/attacked': attacked},
    kinds=['FGSM'],
    labels=[[['seven', 'a very long class name']]],
  )
  drawn = [axis.images[0].get_array() for axis in figure.axes]
  np.testing.assert_allclose(drawn[0], 100 / 255)
  np.testing.assert_allclose(drawn[1], 108 / 255)
  np.testing.assert_allclose(drawn[2], 0.5 + 10 * 8 / 255)
  assert any('change × 10' in text for text in _texts(figure.axes[0]))
  assert figure.axes[1].get_title() == 'seven → a very long…'


EMPTY = {
  'roc_curves': {'panels': {}},
  'curves': {'panels': {}, 'xlabel': '', 'ylabel': ''},
  'transfer_matrix': {'metric': 'AUC (%)', 'filters': {}},
  'interval_bars': {'metric': 'AUC (%)', 'category': 'a', 'series': 'b'},
  'example_pictures': {'kinds': ['a']},
  'score_histogram': {'scores': {'a': 'scores'}},
  'titled_pictures': {'pictures': 'scores', 'titles': []},
}


@pytest.mark.parametrize('kind', EMPTY)
def test_what_has_nothing_to_show_is_drawn_as_such(kind):
  """A run may end with no pictures, scores or rows of a kind."""
  none = np.zeros((1, 0, 4, 4, 3))
  arrays = {'examples/clean': none, 'examples/attacked': none}
  arrays['scores'] = np.zeros(0)
  figure = plots.KINDS[kind](_record(), arrays, **EMPTY[kind])
  assert [text.get_text() for text in figure.texts] == ['nothing to show']


@pytest.mark.parametrize(
  'size, scale',
  [(1.0, 0.5), (0.5, 1), (0.3, 1), (8 / 255, 10), (1e-4, 500), (0, 1)],
)
def test_visible_scale(size, scale):
  assert plots.visible_scale(np.full((2, 3), -size)) == scale


def test_kinds_without_clean_version_show_none():
  pictures = np.zeros((1, 1, 4, 4, 1))
  figure = plots.example_pictures(
    _record(),
    {'examples/clean': pictures, 'examples/attacked': pictures},
    kinds=['IN-A'],
    without_clean=['IN-A'],
  )
  assert [len(axis.images) for axis in figure.axes] == [0, 1, 0]


def test_only_some_examples_are_drawn():
  pictures = np.zeros((2, 9, 4, 4, 1))
  arrays = {'examples/clean': pictures, 'examples/attacked': pictures}
  figure = plots.example_pictures(
    _record(), arrays, kinds=['a', 'b'], num_examples=2
  )
  assert len(figure.axes) == 2 * 2 * 3


def test_bad_figures_are_named(made, tmp_path):
  figure = reports.Plot('f', 'pie', '')
  with pytest.raises(UserError, match='roc_curves'):
    plots.draw(figure, *made, tmp_path / 'f.png')
  panels = {'VGG16': {'PGD': ['scores/none', 'scores/none']}}
  figure = reports.Plot('f', 'roc_curves', '', {'panels': panels})
  with pytest.raises(UserError, match='scores/none'):
    plots.draw(figure, *made, tmp_path / 'f.png')
