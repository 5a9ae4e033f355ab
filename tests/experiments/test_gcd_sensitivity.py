"""Input sensitivity, from the command line to the report."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.gcd import gcd_sensitivity
from experiments.gcd.protocol import setting, study
from jaxadv.errors import UserError
from jaxadv.storage import read_json


@pytest.fixture(scope='module')
def finished(gcd_run):
  return gcd_run('gcd_sensitivity')


def test_a_run_leaves_a_report(finished):
  record = read_json(finished / 'results.json')
  assert (finished / 'report.html').stat().st_size > 10_000
  areas = {
    (row['score'], row['attack']): row
    for row in record['rows']
    if row.get('role') == 'sensitivity'
  }
  assert {attack for _, attack in areas} == {'PGD-U', 'DFool-U', 'DDN-T'}
  for row in areas.values():
    assert 0 <= row['ci_low'] <= row['value'] <= row['ci_high'] <= 100
  exact = {
    (row['score'], row['attack']): row
    for row in record['rows']
    if row.get('role') == 'exact'
  }
  assert exact.keys() == areas.keys()
  # DDN rounds by itself; to round what DeepFool finds moves it.
  assert exact['log S', 'DDN-T']['value'] == areas['log S', 'DDN-T']['value']
  assert (
    exact['log S', 'DFool-U']['value'] != areas['log S', 'DFool-U']['value']
  )
  # Just past the boundary the loss changes most, whatever the classifier.
  assert areas['log S', 'DFool-U']['value'] > 80
  (control,) = [r for r in record['rows'] if r.get('role') == 'control']
  assert control['ci_low'] < 50 < control['ci_high']


def test_a_rerun_finds_everything_in_the_cache(finished, gcd_run):
  before = read_json(finished / 'results.json')['rows']

  def made():
    return sorted(
      path
      for unit in ('classifier', 'gcd_attacked')
      for path in (gcd_run.cache / unit).iterdir()
    )

  pieces = made()
  assert (
    read_json(gcd_run('gcd_sensitivity') / 'results.json')['rows'] == before
  )
  assert made() == pieces and len(pieces) >= 4


def test_toy_sensitivity_falls_with_the_distance():
  (row,), arrays = gcd_sensitivity.toy()
  # S of a linear classifier of two classes is a falling function of it.
  assert row.value == pytest.approx(-1, abs=1e-3)
  assert arrays['toy/s'].shape == (111, 111)


def test_targets_are_other_classes_and_stay():
  config = setting.get_config()
  labels = np.repeat(np.arange(10), 300).astype(np.int32)

  def targets(rows):
    return study.targets_of(
      config,
      study.sources.pictures_from_arrays(
        np.zeros((len(rows), 4, 4, 1), np.uint8),
        labels[rows],
        class_names=tuple('0123456789'),
        name='none',
        source=rows,
      ),
    )

  whole = targets(np.arange(3000))
  assert (whole != labels).all()
  np.testing.assert_array_equal(targets(np.arange(100, 200)), whole[100:200])
  counts = np.bincount((whole - labels) % 10, minlength=10)[1:]
  assert counts.min() > 270 and counts.max() < 400


def test_a_minimal_norm_attack_teaches_by_its_successes_only():
  config = setting.get_config()
  no = np.zeros(6, bool)
  success = np.array([False, True, False, True, False, False])

  def made(found):
    sizes = np.zeros(6)
    return {
      'train': study.Attacked(np.zeros((6, 1, 1, 1)), found, no, sizes, sizes)
    }

  clean = SimpleNamespace(labels=np.zeros(6))
  prepared = study.Study(
    config,
    *[None] * 4,
    clean={'train': clean},
    attacked={'ddn': made(success), 'pgd': made(success), 'cw': made(no)},
  )
  rows = lambda attack: study.taught_rows(prepared, attack, 'train').tolist()
  assert rows('ddn') == [1, 3, 1, 3, 1, 3]
  assert rows('pgd') == [0, 1, 2, 3, 4, 5]
  assert rows('cw') == []
  # Of an attack on fewer pictures, they stand in for those that are missing.
  clean.labels = np.zeros(8)
  assert rows('ddn') == [1, 3] * 4


@pytest.mark.parametrize(
  'flags, said',
  [
    ({'attacks': ('pgd', 'bim')}, "no choice 'bim'"),
    ({'epsilon': 1.5}, '--epsilon is 1.5'),
    ({'betas': ('a',)}, "--betas is 'a'"),
    ({'alphas': ('0.5', '1.5')}, '[0, 1]'),
    ({'num_test': 5}, 'at least 20, 10 and 20'),
    ({'white_pictures': 900}, '--num_test=150'),
    ({'white_const': 0.0}, '--white_const is 0.0'),
    ({'pixelcnn_dropout': 1.0}, '--pixelcnn_dropout is 1.0'),
    ({'purified_radii': ('8', '256')}, "--purified_radii is '8,256'"),
    ({'purified_radii': ('8.5',)}, 'give whole levels'),
    ({'purified_valid': 61}, '--num_valid=60 validation pictures'),
    ({'pixelcnn_rate': 0.0}, '--pixelcnn_rate is 0.0'),
    ({'victim': 'vgg9'}, "no choice 'vgg9'"),
    ({'tws_cap': 0}, '--tws_cap is 0; it must be 1 or more'),
    ({'weights': 'cifar100'}, 'give imagenet, cifar10, or a folder or file'),
    ({'weights': 'cifar10', 'dataset': 'mnist'}, 'mnist is read with one'),
    ({'tws_tuned': 61}, '--num_valid=60'),
    ({'tws_radius': 1.5}, '--tws_radius is 1.5'),
  ],
)
def test_what_cannot_be_is_refused(flags, said):
  with pytest.raises(UserError) as error:
    setting.Config(**flags)
  assert said in str(error.value)


def test_variants_know_their_data():
  grey = setting.get_config('small', 'mnist')
  colour = setting.get_config('small', 'cifar10')
  assert grey.epsilon == 0.3 and colour.epsilon == pytest.approx(8 / 255)
  assert grey.train_split == colour.heldout_split == ''
  assert setting.get_config('paper', 'imagenet20').victim == 'resnet152'
