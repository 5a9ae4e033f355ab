"""Detectors against attacks that do not know them, end to end."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.gcd import gcd_greybox
from experiments.gcd.protocol import baselines, detection, record, setting
from experiments.gcd.protocol import study as studies
from jaxadv.data import sources
from jaxadv.errors import UserError
from jaxadv.metrics import roc
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

  made = gcd_greybox.with_ensembles(
    {'is-seed0': learnt(1.0), 'org-seed0': learnt(10.0)}
  )
  raw = made['gcd_raw'][0]['pooled/pgd/clean']
  np.testing.assert_array_equal(raw, [-30, -10])
  calibrated = made['gcd'][0]['pooled/pgd/clean']
  assert (np.abs(calibrated) < 12).all()
  assert (made['gcd_max'][0]['pooled/pgd/attacked'] >= calibrated.max()).all()


def test_every_attack_counts_where_tws_is_tuned(monkeypatch):
  """C1 finds DDN and C2t PGD, each with one setting only."""
  asked = set()

  def criterion(study, part, value, side, kind, n):
    asked.add((side, kind))
    place = [len(part), len(side), len(kind)]
    values = np.random.default_rng(place).uniform(size=n)
    best = {('noise', 'ddn'): 0.02, ('targeted', 'pgd'): 5e-3}
    values += best.get((part, kind)) == value
    return values if part == 'noise' else np.round(40 * values)

  monkeypatch.setattr(baselines, 'tws_criterion', criterion)
  config = setting.Config(attacks=('pgd', 'ddn'))
  study = SimpleNamespace(config=config)
  both = ('noise', 'targeted')
  together = baselines.tws_settings(study, both, config.attacks)
  assert together == {'noise': 0.02, 'targeted': 5e-3}

  def areas(parts):
    found = baselines.tws_scores(study, parts, config.attacks, config.attacks)
    return [
      roc.auc(
        np.concatenate([found['clean'], found[a]]),
        np.repeat([False, True], config.tws_pictures),
      )
      for a in config.attacks
    ]

  assert min(areas(both)) > 0.95
  # Alone, nothing but its own attack.
  assert areas(('noise',))[0] < 0.7 and areas(('targeted',))[1] < 0.7
  asked.clear()
  baselines.tws_scores(study, both, ('pgd',), ('ddn',))
  assert ('valid', 'ddn') not in asked and ('test', 'ddn') in asked


def test_lessons():
  config = setting.Config(attacks=('pgd', 'ddn'))
  lessons = lambda regime: detection.lessons(config, regime)
  assert lessons('per_attack') == {'pgd': ('pgd',), 'ddn': ('ddn',)}
  assert lessons('pooled') == {'pgd': ('pgd', 'ddn'), 'ddn': ('pgd', 'ddn')}
  assert lessons('leave_one_out') == {'pgd': ('ddn',), 'ddn': ('pgd',)}


def prepared(num_clean):
  """A study of 12 pictures, the first of which are its clean ones."""
  rng = np.random.default_rng(0)
  pictures = sources.pictures_from_arrays(
    rng.integers(0, 256, (12, 2, 2, 1)).astype(np.uint8),
    np.zeros(12, np.int32),
    class_names=('a', 'b'),
    name='levels',
    source=np.arange(100, 112),
  )
  take = lambda *rows: sources.subset(pictures, np.array(rows))
  clean = {'train': take(0, 3), 'valid': take(*range(4, num_clean))}
  attacked = {
    side: studies.Attacked(np.minimum(own.images, 250) + 5, *[None] * 4)
    for side, own in clean.items()
  }
  return studies.Study(
    None, None, pictures, None, None, clean, {'ddn': attacked, 'pgd': None}
  )


@pytest.mark.parametrize(
  'dataset, last, needed, doubts',
  [
    ('digits', 0.01, 9.0, 0),
    ('digits', 0.04, 9.0, 1),
    ('cifar10', 0.01, 3.2, 0),
    ('cifar10', 0.01, 3.3, 1),
    ('cifar10', 0.04, 3.3, 2),
  ],
)
def test_a_density_ought_to_have_converged(
  monkeypatch, dataset, last, needed, doubts
):
  bits = {'train': 3.0, 'test': needed, 'last epoch': last}
  monkeypatch.setattr(baselines, 'density', lambda study: (None, None, bits))
  study = SimpleNamespace(config=SimpleNamespace(dataset=dataset))
  assert len(baselines.density_doubts(study)) == doubts


def test_covariances_of_mds_come_from_pictures_of_nothing_else(monkeypatch):
  monkeypatch.setattr(baselines, 'NUM_REFERENCE', 5)
  found = baselines.reference_pictures(prepared(6))
  np.testing.assert_array_equal(found.source, np.arange(106, 111))
  with pytest.raises(UserError, match='all 12 training pictures'):
    baselines.reference_pictures(prepared(12))


def test_changes_are_enlarged_up_to_the_levels_there_are():
  before = prepared(6)
  after = baselines.enlarged(before, 'ddn', 4)
  assert after.attacked['pgd'] is None
  for side in ('train', 'valid'):
    clean = before.clean[side].images.astype(int)
    change = np.minimum(clean, 250) + 5 - clean
    found = after.attacked['ddn'][side].images
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.clip(clean + 4 * change, 0, 255))
  same = baselines.enlarged(before, 'ddn', 1).attacked['ddn']['train'].images
  np.testing.assert_array_equal(same, before.attacked['ddn']['train'].images)


# Measured with other code and other victims of the same recipe. Draws of the
# noise alone move the last one by a point.
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
  'config, attack, expected, tolerance',
  [
    (setting.get_config(), 'deepfool', 99.5, 1),
    (setting.get_config(), 'ddn', 99.9, 0.5),
    (
      dataclasses.replace(
        setting.get_config('small', 'imagenette160'),
        victim='mobilenet:0.25:128',
        weights='imagenet',
        image_size=128,
      ),
      'ddn',
      98.5,
      1.5,
    ),
    (setting.get_config('small', 'cifar10'), 'ddn', 86, 4),
  ],
  ids=['digits-deepfool', 'digits-ddn', 'imagenette-ddn', 'cifar10-ddn'],
)
def test_noise_alone_finds_pictures_near_a_boundary(
  config, attack, expected, tolerance, tmp_path
):
  fewer = {
    'num_train': 20,
    'num_valid': 20,
    'num_test': 100,
    'tws_pictures': 100,
    'white_pictures': 100,
  }
  config = dataclasses.replace(config, attacks=(attack,), **fewer)
  study = studies.prepare(config, str(tmp_path), lambda *_: None)
  clean, attacked = (
    baselines.tws_criterion(study, 'noise', 0.01, 'test', kind, 100)
    for kind in ('clean', attack)
  )
  found = record.auc_estimate(study, attack, clean, attacked).value
  assert abs(found - expected) < tolerance
