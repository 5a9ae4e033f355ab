"""A folder of pictures scored with a saved detector, by the command line."""

import csv
import json
import os

import numpy as np
import pytest

import launch
from jaxadv.data import images
from jaxadv.detectors import saved
from jaxadv.errors import DataError, DoubtWarning
from jaxadv.evaluation import detect_folder
from jaxadv.evaluation import folder as tool
from jaxadv.sets import io
from jaxadv.storage import read_json, read_npz
from tests.experiments.conftest import TINY


@pytest.fixture(scope='module')
def work(tmp_path_factory):
  return tmp_path_factory.mktemp('detect')


@pytest.fixture(scope='module')
def cell(finished, run, work):
  """Detectors of a run whose detectors were all in the cache."""
  code = run(
    '--exp=unseen_transfer',
    *TINY,
    '--save_detectors',
    f'--workdir={work / "run"}',
    f'--cache_dir={finished.parent / "cache"}',
  )
  assert code == 0
  [cell] = (work / 'run' / 'detectors').iterdir()
  return cell


@pytest.fixture(scope='module')
def attacked(finished):
  """The pictures of kind FGSM, of which half were tested on."""
  for entry in (finished.parent / 'cache' / 'adversarial_sets').iterdir():
    if read_json(entry / 'entry.json')['config']['kind'] == 'fgsm':
      return io.read(entry / 'all').images
  raise AssertionError


@pytest.fixture(scope='module')
def folders(work, attacked):
  """The same pictures in a nested folder, and others in a second one."""
  pictures = {'given': attacked, 'clean': attacked[:10] // 2 + 60}
  for name, found in pictures.items():
    for number, pixels in enumerate(found):
      path = work / name / f'part{number % 2}' / f'{number:02}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(images.encode(pixels))
  (work / 'given' / 'notes.txt').write_text('no picture')
  return {name: work / name for name in pictures}


def detect(*arguments):
  return launch.main(['launch.py', '--exp=detect', *map(str, arguments)])


def table(workdir):
  with open(workdir / 'scores.csv') as file:
    return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def scored(cell, folders, work):
  code = detect(
    f'--detector={cell / "fgsm"}',
    f'--images={folders["given"]}',
    f'--workdir={work / "scored"}',
    '--batch_size=7',
  )
  assert code == 0
  return work / 'scored'


def test_a_run_leaves_the_detectors_of_its_kinds(cell):
  assert cell.name == 'vgg11-0.125-seed0'
  assert {path.name for path in cell.iterdir()} == {
    'natural',
    'natural_plus',
    'fgsm',
    'ni_plus',
    'hsv',
  }


def test_every_picture_is_scored_in_order(scored, folders):
  found = [row['file'] for row in table(scored)]
  assert found == sorted(found) and len(found) == 20
  assert found[0] == 'part0/00.png'


def test_scores_are_those_of_the_run(finished, scored, cell):
  """The way over files, and out of the run, changes no score."""
  name = cell.name
  kept = read_npz(finished / 'cells' / f'{name}.npz')
  place = (
    list(kept['trained']).index('fgsm'),
    list(kept['tested']).index('fgsm'),
  )
  wanted = kept['scores'][place]
  found = np.array([float(row['score']) for row in table(scored)])
  nearest = np.abs(found[:, None] - wanted).min(axis=0)
  np.testing.assert_allclose(nearest, 0, atol=1e-4)
  assert np.std(wanted) > 1e-3
  auc = saved.load(cell / 'fgsm')[1].auc
  rows = json.loads((finished / 'results.json').read_text())['rows']
  [mean] = [
    row['value']
    for row in rows
    if row.get('trained_on') == row.get('tested_on') == 'FGSM'
    and row['metric'] == 'AUC (%)'
  ]
  # The row is the mean of two seeds, of which this is the first.
  assert 0 <= auc <= 1 and abs(100 * auc - mean) <= 50


def test_the_threshold_divides(scored):
  for row in table(scored):
    score, probability = float(row['score']), float(row['probability'])
    assert probability == pytest.approx(1 / (1 + np.exp(-score)), rel=1e-4)
    assert row['attacked'] == str(int(score > 0))


def test_report_shows_scores_and_pictures(scored):
  figures = {path.stem for path in (scored / 'figures').iterdir()}
  assert figures == {'scores', 'highest', 'lowest'}
  page = (scored / 'report.html').read_text()
  assert page.count('data:image/png;base64,') == 3
  scores = read_npz(scored / 'arrays.npz')['scores/images']
  highest = [row['file'] for row in table(scored)][int(scores.argmax())]
  text = json.dumps(
    json.loads((scored / 'results.json').read_text())['figures']
  )
  assert text.index(highest.split('/')[1]) < text.index('lowest')
  assert str(scored.parent) not in page


def test_false_alarms_stay_below_what_was_asked(cell, folders, tmp_path):
  code = detect(
    f'--detector={cell / "fgsm"}',
    f'--images={folders["given"]}',
    f'--clean={folders["clean"]}',
    '--fpr=0.2',
    f'--workdir={tmp_path}',
  )
  assert code == 0
  arrays = read_npz(tmp_path / 'arrays.npz')
  threshold = np.sort(arrays['scores/clean'])[::-1][2]
  found = [row['attacked'] == '1' for row in table(tmp_path)]
  np.testing.assert_array_equal(found, arrays['scores/images'] > threshold)
  rows = json.loads((tmp_path / 'results.json').read_text())['rows']
  alarms = {row['pictures']: row['value'] for row in rows}
  assert alarms['known to be clean (set the threshold)'] <= 20
  config = json.loads((tmp_path / 'results.json').read_text())['config']
  assert config['threshold'] == pytest.approx(threshold) != 0


def test_clean_pictures_that_measure_no_false_alarms_are_told(tmp_path):
  for name in (
    'all/in/1.png',
    'all/in/2.png',
    'all/3.png',
    'other/4.png',
  ):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode())

  def told(clean, fpr=0.0):
    scored = lambda folder: tool.Scored(
      folder, tool.picture_files('images', folder), np.zeros(0), []
    )
    images, known = scored(tmp_path / 'all'), None
    if clean:
      known = scored(tmp_path / clean)
    return tool.warnings(tool.Detection(images, known, 0.0), fpr)

  assert not told('') and not told('other') and not told('other', 1 - 1e-12)
  assert ': 3 of 3;' in told('all')[0]
  assert ': 2 of 2;' in told('all/in')[0]
  os.link(tmp_path / 'all' / '3.png', tmp_path / 'other' / '5.png')
  assert ': 1 of 2;' in told('other')[0]
  assert not told('other', 0.5)[1:]
  few = told('other', 0.001)[1]
  assert 'FPR of 0.001' in few and 'of 2, above which 66 %' in few
  assert few.endswith('at least 1000')


def test_a_broken_picture_stops_or_is_listed(cell, folders, tmp_path, capsys):
  folder = tmp_path / 'pictures'
  folder.mkdir()
  good = (folders['given'] / 'part0' / '00.png').read_bytes()
  (folder / 'a.png').write_bytes(good)
  (folder / 'b.PNG').write_bytes(good[:50])
  command = (
    f'--detector={cell / "hsv"}',
    f'--images={folder}',
    f'--workdir={tmp_path / "run"}',
  )
  assert detect(*command) == 1
  complaint = capsys.readouterr().err
  assert 'b.PNG' in complaint and '--skip_broken' in complaint
  # The advice can be followed in the same folder.
  assert detect(*command, '--skip_broken') == 0
  assert [row['file'] for row in table(tmp_path / 'run')] == ['a.png']
  missing = json.loads((tmp_path / 'run' / 'results.json').read_text())[
    'missing'
  ]
  assert len(missing) == 1 and 'b.PNG' in missing[0]


def test_a_score_that_is_no_number_names_the_picture(tmp_path):
  """It would count as clean, being above no threshold."""
  for name in 'ab':
    pixels = np.full((4, 4, 3), ord(name), np.uint8)
    (tmp_path / f'{name}.png').write_bytes(images.encode(pixels))
  score = lambda pictures: np.array([0.5, np.nan])
  with pytest.raises(DataError, match='b.png .* is nan'):
    tool.score_files(score, 4, tmp_path, ['a.png', 'b.png'], 256, False)


def test_hidden_folders_hold_no_pictures_and_other_files_are_counted(tmp_path):
  encoded = images.encode(np.zeros((4, 4, 3), np.uint8))
  for name in ('b/1.webp', 'a.PNG', '@eaDir/a.PNG', '.git/2.png', 'b/x.mp4'):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encoded)
  with pytest.warns(DoubtWarning, match=r'1 file in .* \(\.mp4 1\)'):
    files = tool.picture_files('images', tmp_path)
  assert files == ['a.PNG', 'b/1.webp']
  # What a file is called does not matter to how it is read.
  assert tool.read_picture(tmp_path / 'b' / '1.webp', 4).shape == (4, 4, 3)


def test_from_python_scores_are_returned_and_nothing_is_written(
  cell, folders, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  found = detect_folder(
    cell / 'fgsm', folders['given'], clean=folders['clean'], fpr=0.2
  )
  assert not list(tmp_path.iterdir())
  assert len(found.images.files) == len(found.attacked) == 20
  assert (found.clean.scores > found.threshold).mean() <= 0.2
  np.testing.assert_array_equal(
    found.attacked, found.images.scores > found.threshold
  )


def test_plan_runs_nothing(cell, folders, tmp_path, capsys):
  code = detect(
    f'--detector={cell / "fgsm"}',
    f'--images={folders["given"]}',
    '--plan',
    f'--workdir={tmp_path / "run"}',
  )
  assert code == 0
  found = capsys.readouterr().out
  assert '20 pictures' in found and 'vgg11' in found and 'fgsm' in found
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'arguments, parts',
  [
    ([], ['--detector']),
    (['--detector=nowhere', '--images=x'], ['nowhere', '--save_detectors']),
    (['--detector={cell}/fgsm'], ['--images']),
    (['--detector={cell}/fgsm', '--images=nowhere'], ['nowhere', 'no folder']),
    (['--detector={cell}/fgsm', '--images={cell}'], ['no picture', '.png']),
    (['--fpr=0.1'], ['--fpr', '--clean']),
    (['--fpr=1.5', '--clean=x'], ['1.5', '(0, 1)']),
    (['--fpr=0.5', '--clean=x', '--threshold=1'], ['--fpr', '--threshold']),
    (['--threshold=nan'], ['nan', 'finite']),
  ],
)
def test_what_cannot_be_is_refused(
  cell, tmp_path, monkeypatch, capsys, arguments, parts
):
  monkeypatch.chdir(tmp_path)
  assert detect(*(text.format(cell=cell) for text in arguments)) == 2
  complaint = capsys.readouterr().err
  assert len(complaint.splitlines()) == 1
  for part in parts:
    assert part in complaint
  assert not (tmp_path / 'runs').exists()
