"""Input sensitivity, from the command line to the report."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.common import detectors
from experiments.gcd import config as config_module
from experiments.gcd import gcd_sensitivity, pictures
from jaxadv.data import sources
from jaxadv.errors import UserError
from jaxadv.sets.types import AdversarialSet
from jaxadv.storage import read_json


@pytest.fixture(scope='module')
def finished(gcd_run):
  return gcd_run('gcd_sensitivity')


def test_a_run_leaves_a_report(finished):
  report = read_json(finished / 'results.json')
  assert (finished / 'report.html').stat().st_size > 10_000
  areas = {
    (row['score'], row['attack']): row
    for row in report['rows']
    if row.get('role') == 'sensitivity'
  }
  assert {attack for _, attack in areas} == {'PGD-U', 'DFool-U', 'DDN-T'}
  for row in areas.values():
    assert 0 <= row['ci_low'] <= row['value'] <= row['ci_high'] <= 100
  exact = {
    (row['score'], row['attack']): row
    for row in report['rows']
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
  (control,) = [r for r in report['rows'] if r.get('role') == 'control']
  assert control['ci_low'] < 50 < control['ci_high']


def test_a_rerun_finds_everything_in_the_cache(finished, gcd_run):
  before = read_json(finished / 'results.json')['rows']

  def made():
    return sorted(
      path
      for unit in ('classifier', 'adversarial_sets')
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
  config = config_module.get_config()
  labels = np.repeat(np.arange(10), 300).astype(np.int32)

  def targets(rows):
    return pictures.targets_of(
      config,
      sources.pictures_from_arrays(
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
  config = config_module.get_config()
  no = np.zeros(6, bool)
  success = np.array([False, True, False, True, False, False])

  def made(found):
    return {
      'train': AdversarialSet(
        np.zeros((6, 1, 1, 1)), None, None, found, no, 'ddn', (), {}
      )
    }

  clean = SimpleNamespace(labels=np.zeros(6))
  prepared = pictures.RunInputs(
    config,
    *[None] * 4,
    clean={'train': clean},
    attacked={
      'ddn': made(success),
      'pgd': made(success),
      'carlini_wagner': made(no),
    },
  )
  rows = lambda attack: detectors.training_rows(
    prepared, attack, 'train'
  ).tolist()
  assert rows('ddn') == [1, 3, 1, 3, 1, 3]
  assert rows('pgd') == [0, 1, 2, 3, 4, 5]
  assert rows('carlini_wagner') == []
  # Of an attack on fewer pictures, they stand in for those that are missing.
  clean.labels = np.zeros(8)
  assert rows('ddn') == [1, 3] * 4


@pytest.mark.parametrize(
  'flags, said',
  [
    ({'attacks': ('pgd', 'bim')}, "no choice 'bim'"),
    ({'attacks': ('pgd:epsilon=a',)}, "epsilon is 'a' but must be a number"),
    ({'attacks': ('pgd:steps=3',)}, 'did you mean num_steps'),
    ({'attacks': ('pgd:targeted=true',)}, 'pgd_t is the targeted pgd'),
    ({'attacks': ('pgd:num_steps=0',)}, '--attacks has pgd: num_steps'),
    ({'attacks': ('fgsm:epsilon=nan',)}, '--attacks has fgsm: epsilon'),
    ({'white_attacks': ('ddn:gamma=2',)}, '--white_attacks has ddn: gamma'),
    ({'training_attacks': ('pgd:step_size=-1',)}, '--training_attacks has pgd'),
    ({'training_attacks': ('fgsm',)}, 'choose from pgd, ddn'),
    ({'betas': ('a',)}, "--betas is 'a'"),
    ({'alphas': ('0.5', '1.5')}, '[0, 1]'),
    ({'num_test': 5}, '--num_test is 5; it must be 20 or more'),
    ({'white_pictures': 900}, '--num_test is 150'),
    ({'pixelcnn_dropout': 1.0}, '--pixelcnn_dropout is 1.0'),
    ({'purified_radii': ('8', '256')}, "--purified_radii is '8,256'"),
    ({'purified_radii': ('8.5',)}, 'give whole levels'),
    ({'purified_valid': 61}, '--num_valid is 60'),
    ({'pixelcnn_rate': 0.0}, '--pixelcnn_rate is 0.0'),
    ({'victim': 'vgg9'}, "no choice 'vgg9'"),
    ({'tws_cap': 0}, '--tws_cap is 0; it must be 1 or more'),
    ({'weights': 'cifar100'}, 'give imagenet, cifar10, or a folder or file'),
    ({'weights': 'cifar10', 'dataset': 'mnist'}, 'mnist is read with one'),
    ({'tws_tuned': 61}, '--num_valid is 60'),
    ({'tws_radius': 1.5}, '--tws_radius is 1.5'),
  ],
)
def test_what_cannot_be_is_refused(flags, said):
  with pytest.raises(UserError) as error:
    config_module.Config(**flags)
  assert said in str(error.value)


def test_what_is_given_of_an_attack_holds_of_both_its_goals():
  half = {'epsilon': 0.5, 'num_steps': 6}
  for given in (
    ('pgd:epsilon=0.5:num_steps=6', 'pgd_t'),
    ('pgd', 'pgd_t:epsilon=0.5:num_steps=6'),
  ):
    config = config_module.Config(attacks=given)
    for name in 'pgd', 'pgd_t':
      assert half.items() <= config.attack_settings(name).items()
  apart = config_module.Config(attacks=('pgd:epsilon=0.5', 'pgd_t:epsilon=0.1'))
  assert apart.attack_settings('pgd_t')['epsilon'] == 0.1


def test_the_white_box_has_a_radius_of_its_own():
  config = config_module.Config(white_attacks=('pgd:epsilon=0.15',))
  assert (config.epsilon, config.white_epsilon) == (0.3, 0.15)
  assert config.white_settings('pgd')['step_size'] == pytest.approx(0.015)


def test_variants_know_their_data():
  grey = config_module.get_config('small', 'mnist')
  colour = config_module.get_config('small', 'cifar10')
  assert grey.epsilon == 0.3 and colour.epsilon == pytest.approx(8 / 255)
  assert grey.train_split == colour.heldout_split == ''
  assert config_module.get_config('paper', 'imagenet20').victim == 'resnet152'
