"""Detectors against attacks that do not know them, end to end."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.common import detectors
from experiments.gcd import (
  baseline_detectors,
  gcd_greybox,
  report,
)
from experiments.gcd import config as config_module
from experiments.gcd.pictures import RunInputs, prepare_inputs
from jaxadv.data import sources
from jaxadv.errors import UserError
from jaxadv.metrics import roc
from jaxadv.sets.types import AdversarialSet
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

  def criterion(inputs, part, value, side, kind, n):
    asked.add((side, kind))
    place = [len(part), len(side), len(kind)]
    values = np.random.default_rng(place).uniform(size=n)
    best = {('noise', 'ddn'): 0.02, ('targeted', 'pgd'): 5e-3}
    values += best.get((part, kind)) == value
    return values if part == 'noise' else np.round(40 * values)

  monkeypatch.setattr(baseline_detectors, 'tws_criterion', criterion)
  config = config_module.Config(attacks=('pgd', 'ddn'))
  inputs = SimpleNamespace(config=config)
  both = ('noise', 'targeted')
  together = baseline_detectors.tws_settings(inputs, both, config.attack_names)
  assert together == {'noise': 0.02, 'targeted': 5e-3}

  def areas(parts):
    found = baseline_detectors.tws_scores(
      inputs, parts, config.attack_names, config.attack_names
    )
    return [
      roc.auc(
        np.concatenate([found['clean'], found[a]]),
        np.repeat([False, True], config.tws_pictures),
      )
      for a in config.attack_names
    ]

  assert min(areas(both)) > 0.95
  # Alone, nothing but its own attack.
  assert areas(('noise',))[0] < 0.7 and areas(('targeted',))[1] < 0.7
  asked.clear()
  baseline_detectors.tws_scores(inputs, both, ('pgd',), ('ddn',))
  assert ('valid', 'ddn') not in asked and ('test', 'ddn') in asked


def test_what_detectors_learn_by_regime():
  training_attacks = lambda regime: detectors.training_attacks(
    ('pgd', 'ddn'), regime
  )
  assert training_attacks('per_attack') == {'pgd': ('pgd',), 'ddn': ('ddn',)}
  assert training_attacks('pooled') == {
    'pgd': ('pgd', 'ddn'),
    'ddn': ('pgd', 'ddn'),
  }
  assert training_attacks('leave_one_out') == {'pgd': ('ddn',), 'ddn': ('pgd',)}


def attacked_set(images, success_float, success):
  return AdversarialSet(
    images, None, None, success_float, success, 'ddn', (), {}
  )


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
    side: attacked_set(np.minimum(own.images, 250) + 5, None, None)
    for side, own in clean.items()
  }
  return RunInputs(
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
  monkeypatch.setattr(
    baseline_detectors, 'density', lambda inputs: (None, None, bits)
  )
  inputs = SimpleNamespace(config=SimpleNamespace(dataset=dataset))
  assert len(baseline_detectors.density_doubts(inputs)) == doubts


def test_covariances_of_mds_come_from_pictures_of_nothing_else(monkeypatch):
  monkeypatch.setattr(baseline_detectors, 'NUM_REFERENCE', 5)
  found = baseline_detectors.reference_pictures(prepared(6))
  np.testing.assert_array_equal(found.source, np.arange(106, 111))
  with pytest.raises(UserError, match='all 12 training pictures'):
    baseline_detectors.reference_pictures(prepared(12))


def test_changes_are_enlarged_up_to_the_levels_there_are():
  before = prepared(6)
  after = baseline_detectors.enlarged(before, 'ddn', 4)
  assert after.attacked['pgd'] is None
  for side in ('train', 'valid'):
    clean = before.clean[side].images.astype(int)
    change = np.minimum(clean, 250) + 5 - clean
    found = after.attacked['ddn'][side].images
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.clip(clean + 4 * change, 0, 255))
  same = (
    baseline_detectors.enlarged(before, 'ddn', 1)
    .attacked['ddn']['train']
    .images
  )
  np.testing.assert_array_equal(same, before.attacked['ddn']['train'].images)


# Measured with other code and other victims of the same recipe. Draws of the
# noise alone move the last one by a point.
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
  'config, attack, expected, tolerance',
  [
    (config_module.get_config(), 'deepfool', 99.5, 1),
    (config_module.get_config(), 'ddn', 99.9, 0.5),
    (
      dataclasses.replace(
        config_module.get_config('small', 'imagenette160'),
        victim='mobilenet:0.25:128',
        weights='imagenet',
        image_size=128,
      ),
      'ddn',
      98.5,
      1.5,
    ),
    (config_module.get_config('small', 'cifar10'), 'ddn', 86, 4),
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
  inputs = prepare_inputs(config, str(tmp_path), lambda *_: None)
  clean, attacked = (
    baseline_detectors.tws_criterion(inputs, 'noise', 0.01, 'test', kind, 100)
    for kind in ('clean', attack)
  )
  found = report.attack_auc(inputs, attack, clean, attacked).value
  assert abs(found - expected) < tolerance
