"""Detectors against attacks that do not know them, end to end."""

import numpy as np
import pytest

from experiments.gcd import gcd_greybox
from experiments.gcd.protocol import detection, setting
from jaxadv.storage import read_json


@pytest.fixture(scope='module')
def finished(gcd_run):
  return gcd_run('gcd_greybox', '--attacks=pgd,deepfool')


def test_every_detector_meets_every_attack(finished):
  rows = read_json(finished / 'results.json')['rows']
  areas = {
    (row['training'], row['detector'], row['attack']): row
    for row in rows
    if row['role'] == 'detection'
  }
  attacks = {'PGD-U', 'DFool-U'}
  shown = set(gcd_greybox.SHOWN.values())
  assert {key[1:] for key in areas if key[0] == 'per attack'} == {
    (detector, attack) for detector in shown for attack in attacks
  }
  assert {key[1] for key in areas if key[0] == 'leave one out'} == shown - {
    'DET_sal'
  }
  # Noise of 0.3 is seen by any network on pixels, whatever else was learnt.
  assert areas['pooled', 'DET_org', 'PGD-U']['value'] > 60
  for key, row in areas.items():
    if key[1] in ('log S', '1 - max probability', 'DET_PD'):
      assert row['value'] == areas['per attack', *key[1:]]['value']
  bits = [r['value'] for r in rows if r['role'] == 'density']
  assert len(bits) == 2 and 0 < max(bits) < 8.5


def test_the_ensemble_takes_the_more_certain_calibrated_logit():
  rng = np.random.default_rng(0)
  attacked = np.arange(100) >= 50

  def learnt(scale):
    # Of the same worth, but ten times as sure of it.
    valid = scale * (rng.normal(0, 1, 100) + np.where(attacked, 1.0, -1.0))
    return {
      'pooled/pgd/valid': valid.astype(np.float32),
      'pooled/pgd/valid_attacked': attacked,
      'pooled/pgd/clean': np.array([-3.0, -1.0], np.float32) * scale,
      'pooled/pgd/attacked': np.array([1.0, 2.0], np.float32) * scale,
    }

  made = gcd_greybox.with_ensembles({'is': learnt(1.0), 'org': learnt(10.0)})
  raw = made['gcd_raw']['pooled/pgd/clean']
  np.testing.assert_array_equal(raw, [-30, -10])
  calibrated = made['gcd']['pooled/pgd/clean']
  assert (np.abs(calibrated) < 12).all()
  assert (made['gcd_max']['pooled/pgd/attacked'] >= calibrated.max()).all()


def test_lessons():
  config = setting.Config(attacks=('pgd', 'ddn'))
  lessons = lambda regime: detection.lessons(config, regime)
  assert lessons('per_attack') == {'pgd': ('pgd',), 'ddn': ('ddn',)}
  assert lessons('pooled') == {'pgd': ('pgd', 'ddn'), 'ddn': ('pgd', 'ddn')}
  assert lessons('leave_one_out') == {'pgd': ('ddn',), 'ddn': ('pgd',)}
