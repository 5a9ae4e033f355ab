"""The experiments of the connection paper end to end, as small as can be."""

import csv
import dataclasses
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments.connection import report
from experiments.connection.config import get_config, weight_file
from jaxadv.errors import UserError
from jaxadv.models.weights import published
from tests.experiments.conftest import TINY

KINDS = {
  'natural': 'IN-A',
  'natural_plus': 'IN-A+',
  'fgsm': 'FGSM',
  'ni_plus': 'NI+',
  'hsv': 'HSV',
}
CELLS = ['vgg11-0.125-seed0', 'vgg11-0.125-seed1']
AUC = 'AUC (%)'


def results(folder):
  return json.loads((folder / 'results.json').read_text())


def rows(folder):
  return results(folder)['rows']


def matrix(folder):
  """Gives {(trained on, tested on): AUC} of the kinds."""
  return {
    (row['trained_on'], row['tested_on']): row['value']
    for row in rows(folder)
    if row.get('role') == 'kind' and row['metric'] == AUC
  }


def contents(folder):
  """Gives what tells whether any file has been written again."""
  return {
    path: path.stat().st_mtime_ns
    for path in folder.rglob('*')
    if path.is_file() and '.locks' not in path.parts
  }


def copy_pictures(finished, folder):
  """Copies the cache without the detectors."""
  shutil.copytree(
    finished.parent / 'cache',
    folder / 'cache',
    ignore=shutil.ignore_patterns('detectors'),
  )


def test_results_have_the_promised_fields(finished):
  found = results(finished)
  assert found['experiment'] == 'unseen_transfer'
  assert found['variant'] == 'quick'
  assert found['config']['num_trials'] == 3
  assert 'batch_size' not in found['config']
  assert found['missing'] == []
  assert found['provenance']['fingerprints'].keys() >= {'victim'}
  for row in found['rows']:
    assert math.isfinite(row['value'])
    assert {'metric', 'ci_low', 'ci_high', 'n', 'paper'} <= row.keys()
    if row['ci_low'] is not None:
      assert row['ci_low'] <= row['value'] + 1e-9
      assert row['value'] <= row['ci_high'] + 1e-9


def test_six_claims_come_with_a_verdict(finished):
  claims = results(finished)['claims']
  assert [claim['claim'][:3] for claim in claims] == [
    f'C{number}:' for number in range(1, 7)
  ]
  # Ten test pictures bear no claim.
  assert {c['verdict'] for c in claims} == {'not tested'}
  assert all('10 test pictures are fewer than 100' in c['note'] for c in claims)


def test_matrix_is_whole_and_agrees_with_the_scores(finished):
  found = matrix(finished)
  names = KINDS.values()
  assert found.keys() == {(a, b) for a in names for b in names}
  # Trained on, and tested on after the clean ones: the same order.
  order = list(KINDS.values())
  aucs = []
  with np.load(finished / 'arrays.npz') as arrays:
    for seed in range(2):
      scores = arrays[f'scores/vgg11 x0.125/seed{seed}']
      aucs.append(
        [
          [
            roc_auc_score(
              [0] * 10 + [1] * 10,
              np.concatenate([scores[a, 0], scores[a, 1 + b]]),
            )
            for b in range(len(order))
          ]
          for a in range(len(order))
        ]
      )
  means = 100 * np.mean(aucs, axis=0)
  for a, trained in enumerate(order):
    for b, tested in enumerate(order):
      assert found[trained, tested] == pytest.approx(means[a, b], abs=1e-6)


def test_every_row_says_how_many_pictures_stand_behind_it(finished):
  kinds = [row for row in rows(finished) if row.get('role') == 'kind']
  assert {row['n'] for row in kinds} == {10}
  success = {
    (row['kind'], row['column']): row
    for row in rows(finished)
    if row['metric'] == 'success rate (%)'
  }
  assert {row['n'] for row in success.values()} == {20}
  # By construction, before and after rounding.
  assert success['IN-A', 'as 8-bit pictures']['value'] == 100
  assert success['NI+', 'as 8-bit pictures']['value'] < 50


def test_controls_are_in_every_run(finished):
  controls = [row for row in rows(finished) if row.get('role') == 'control']
  text = ' '.join(row['control'] for row in controls)
  for name in ('shuffled labels', 're-encoded clean', 'cropped clean'):
    assert name in text
  reencoded = [r for r in controls if r['control'].count('re-encoded') == 2]
  # Clean pictures after the path of an attacked one are the same pictures.
  assert [row['value'] for row in reencoded] == [50]


def test_tables_figures_and_report_are_there(finished):
  figures = {path.name for path in (finished / 'figures').iterdir()}
  assert figures == {
    'transfer-vgg11-x0.125.png',
    'roc.png',
    'seen.png',
    'examples.png',
  }
  table = (finished / 'table.md').read_text()
  assert 0 < table.index('C1:') < table.index('C6:') < table.index('Table 1')
  with open(finished / 'table.csv') as file:
    assert len(list(csv.reader(file))) > len(matrix(finished))
  page = (finished / 'report.html').read_text()
  assert page.count('data:image/png;base64,') == len(figures)
  assert 'src="http' not in page
  assert str(finished.parent) not in page + table


def test_rerun_computes_nothing_and_gives_the_same_rows(finished, run, capsys):
  before, wanted = contents(finished.parent / 'cache'), rows(finished)
  code = run(
    '--exp=unseen_transfer', *TINY, f'--workdir={finished}', '--batch_size=100'
  )
  assert code == 0
  assert rows(finished) == wanted
  assert contents(finished.parent / 'cache') == before
  assert 'report.html' in capsys.readouterr().out


def test_seen_detection_is_the_diagonal_and_shares_the_cache(finished, run):
  cache = finished.parent / 'cache'
  before = contents(cache)
  seen = finished.parent / 'seen'
  assert run('--exp=seen_detection', *TINY, f'--workdir={seen}') == 0
  assert contents(cache) == before
  whole = matrix(finished)
  assert matrix(seen) == {(k, k): whole[k, k] for k in KINDS.values()}
  assert [c['claim'][:2] for c in results(seen)['claims']] == ['C1', 'C2']
  assert not (seen / 'figures' / 'transfer-vgg11-x0.125.png').exists()


def test_shards_together_equal_the_whole(finished, run, tmp_path, capsys):
  copy_pictures(finished, tmp_path)
  command = ('--exp=unseen_transfer', *TINY, f'--workdir={tmp_path / "run"}')
  assert run(*command, '--shard=0/2') == 0
  assert CELLS[1] in capsys.readouterr().out
  cells = tmp_path / 'run' / 'cells'
  assert [path.stem for path in cells.iterdir()] == CELLS[:1]
  assert run(*command, '--shard=1/2') == 0
  assert sorted(path.stem for path in cells.iterdir()) == CELLS
  assert rows(tmp_path / 'run') == rows(finished)


def test_order_of_kinds_is_part_of_the_address(finished, run, tmp_path):
  """Else the second run reads the first one's scores under other names."""
  cache = finished.parent / 'cache'
  command = (
    '--exp=seen_detection',
    *TINY,
    '--num_seeds=1',
    f'--cache_dir={cache}',
  )
  turned = 'natural,natural_plus,ni_plus,fgsm,hsv'
  before = len(list((cache / 'detectors').iterdir()))
  assert (
    run(*command, f'--attacks={turned}', f'--workdir={tmp_path / "run"}') == 0
  )
  assert len(list((cache / 'detectors').iterdir())) == before + 1


def test_plan_tells_what_is_there_and_writes_no_workdir(
  finished, run, tmp_path, capsys
):
  command = ('--exp=unseen_transfer', *TINY, '--plan')
  assert run(*command, f'--workdir={finished}') == 0
  plan = capsys.readouterr().out
  assert '2 finished' in plan
  assert all(cell in plan for cell in CELLS)
  assert ' no\n' not in plan
  copy_pictures(finished, tmp_path)
  shutil.rmtree(tmp_path / 'cache' / 'adversarial_sets')
  assert run(*command, f'--workdir={tmp_path / "new"}') == 0
  plan = capsys.readouterr().out
  assert '0 finished' in plan
  assert plan.count(' no\n') == 1
  assert 'minutes' in plan
  assert not (tmp_path / 'new').exists()


def test_list_names_everything_a_flag_takes(run, capsys):
  assert run('--list') == 0
  found = capsys.readouterr().out
  for name in ('unseen_transfer', 'seen_detection', 'fgsm', 'hsv'):
    assert name in found
  for name in ('mobilenet', 'vgg16', 'digits'):
    assert name in found


def test_the_report_says_what_its_networks_cannot_tell():
  def caveats(*arguments):
    return report.caveats(SimpleNamespace(config=get_config(*arguments)))

  pretrained = caveats('small', 'imagenet_sample')
  assert 'one family, MobileNet' in pretrained
  assert 'seen these pictures in training' in pretrained
  assert not caveats('quick').strip()


def test_networks_find_their_weights_among_several_names(monkeypatch, tmp_path):
  monkeypatch.setenv(published.WEIGHTS_DIR, str(tmp_path))
  files = {
    'resnet20': tmp_path / 'resnet20_cifar10.safetensors',
    'mobilenet:0.25:128': tmp_path / 'mobilenet_v1_0.25_128.npz',
  }
  for file in files.values():
    file.touch()
  for weights in (('imagenet', 'cifar10'), ('cifar10', 'imagenet')):
    config = dataclasses.replace(
      get_config(), victim='resnet20', backbones=tuple(files), weights=weights
    )
    for network, file in files.items():
      assert weight_file(config, network) == str(file)
  alone = dataclasses.replace(config, weights=('cifar10',))
  with pytest.raises(UserError, match='not of mobilenet; ask for imagenet'):
    weight_file(alone, 'mobilenet:0.25:128')
