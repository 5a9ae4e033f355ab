"""N+1-way supervision: claim C7 on made-up scores, and a tiny run."""

import json
import math

import numpy as np
import pytest

from experiments.connection import attack_supervision
from experiments.connection import supervision_report as supervision
from experiments.connection.matrix import CellScores
from jaxadv.errors import UserError
from jaxadv.metrics.intervals import percentile_interval
from tests.experiments.conftest import TINY
from tests.experiments.test_connection import CELLS, contents, results, rows

NUM = 200
WANTED = {'natural': ['natural', 'natural_plus'], 'artificial': ['fgsm', 'pgd']}
NAMES = ('natural', 'natural_plus', 'fgsm', 'pgd')
TESTED = ('clean', *NAMES, 'reencoded')
ACCURACY = 'accuracy (%)'


def result(single, together, false_alarms=0.1, seed=0):
  """Makes a cell's result from the shares of pictures that are found.

  Args:
    single: `(trained, tested) -> share`.
    together: `(category, tested) -> share`; what is found is named right.
    false_alarms: Share of the clean pictures, by detectors and identifiers.
    seed: Turns the test pictures, lest seeds be wrong at the same ones.
  """

  def called(share):
    return np.roll(np.arange(NUM) < round(share * NUM), 7 * seed)

  scores = np.zeros((len(NAMES), len(TESTED), NUM), np.float32)
  for row, trained in enumerate(NAMES):
    for column, tested in enumerate(TESTED):
      share = single(trained, tested) if tested in NAMES else false_alarms
      scores[row, column] = np.where(called(share), 1, -1)
  logits = {}
  for category, kinds in WANTED.items():
    own = np.zeros((len(TESTED), NUM, 1 + len(kinds)), np.float32)
    for column, tested in enumerate(TESTED):
      share = together(category, tested) if tested in NAMES else false_alarms
      index = 1 + kinds.index(tested) if tested in kinds else 1
      own[column, ~called(share), 0] = 1
      own[column, called(share), index] = 1
    logits[category] = own
  sources = np.tile(np.arange(NUM, dtype=np.int32), (len(TESTED), 1))
  # Natural kinds come from other pictures.
  sources[1:3] += NUM
  return supervision.Supervised(
    CellScores(NAMES, TESTED, scores, sources, np.zeros_like(sources, bool)),
    logits,
  )


def judged(*results):
  # A single training is no ground for a verdict: two of the same.
  seeds = results * 2 if len(results) == 1 else results
  return supervision.judge({'net': seeds}, WANTED)


def verdicts(*results):
  found = supervision.evaluate(judged(*results), WANTED, NUM)
  return [claim.verdict for claim in found]


def test_accuracy_weighs_clean_and_attacked_the_same():
  kinds = {'natural': 0.5, 'natural_plus': 0.7, 'fgsm': 1.0, 'pgd': 0.0}
  found = judged(
    result(lambda a, b: kinds[b], lambda c, b: 0.9, false_alarms=0.2)
  )
  for tested, wanted in (('natural', 65), ('natural_plus', 75), ('mean', 70)):
    estimate = found.accuracy['net', 'natural', 'natural', tested]
    assert estimate.value == pytest.approx(wanted)
    interval = percentile_interval(estimate.draws)
    assert interval.low < wanted < interval.high
  together = found.accuracy['net', 'artificial', 'all artificial', 'mean']
  assert together.value == pytest.approx(85)


def test_accuracy_is_the_mean_over_seeds():
  found = judged(
    *[
      result(lambda a, b: 0.5, lambda c, b, s=share: s, seed=seed)
      for seed, share in enumerate((0.5, 0.9))
    ]
  )
  estimate = found.accuracy['net', 'natural', 'all natural', 'mean']
  assert estimate.value == pytest.approx((90 + 70) / 2)


def test_names_are_counted_by_class():
  found = judged(result(lambda a, b: 0.5, lambda c, b: 0.8))
  shares = lambda true: [
    found.called['net', 'artificial', true, name].value
    for name in ('clean', 'fgsm', 'pgd')
  ]
  assert shares('pgd') == pytest.approx([20, 0, 80])
  assert shares('fgsm') == pytest.approx([20, 80, 0])
  assert shares('clean') == pytest.approx([90, 10, 0])
  alarms = found.false_alarms
  assert alarms['net', 'natural', 'reencoded'].value == pytest.approx(10)
  assert {name for *_, name in alarms} == {'clean', 'reencoded'}


@pytest.mark.parametrize(
  'gain, verdict',
  [(0.2, 'held'), (-0.2, 'did not'), (0.005, 'cannot tell')],
)
def test_a_verdict_follows_the_gain_of_its_category(gain, verdict):
  together = lambda c, b: 0.7 + (gain if c == 'artificial' else 0.2)
  # Found by one or by all: different pictures, or pairs would be exact.
  single = lambda a, b: 0.7
  made = result(single, together)
  turned = made._replace(
    logits={c: np.roll(own, 40, axis=1) for c, own in made.logits.items()}
  )
  # The paper's semantic kinds are not in this run.
  assert verdicts(turned) == ['held', verdict, 'not tested']


def test_a_gain_has_to_be_over_every_single_kind():
  single = lambda a, b: 0.95 if a == 'natural_plus' else 0.5
  assert verdicts(result(single, lambda c, b: 0.8))[0] == 'did not'


def test_gains_are_paired():
  found = judged(result(lambda a, b: 0.7, lambda c, b: 0.7))
  gain = supervision.gains(found, 'natural', WANTED['natural'])
  for estimate in gain.values():
    np.testing.assert_array_equal(estimate.draws, 0)
  accuracy = found.accuracy['net', 'natural', 'natural', 'mean']
  assert np.std(accuracy.draws) > 0.5


def test_packed_results_come_back():
  made = result(lambda a, b: 0.7, lambda c, b: 0.8)
  back = attack_supervision.unpack(attack_supervision.pack(made))
  assert back.single.trained == NAMES and back.single.tested == TESTED
  assert back.logits.keys() == made.logits.keys()
  for category, logits in made.logits.items():
    np.testing.assert_array_equal(back.logits[category], logits)


def test_kinds_of_different_categories_are_refused():
  config = attack_supervision.get_config()
  assert len(config.backbones) == 1
  with pytest.raises(UserError, match='--attacks'):
    supervision.categories(('natural', 'fgsm', 'hsv'))


@pytest.fixture(scope='module')
def supervised(finished, run):
  """A tiny run beside that of unseen_transfer, and what it found cached."""
  cache = finished.parent / 'cache'
  before = contents(cache)
  folder = finished.parent / 'supervised'
  command = ('--exp=attack_supervision', *TINY, f'--workdir={folder}')
  assert run(*command) == 0
  return folder, command, before


def test_detectors_are_those_of_the_other_experiments(supervised):
  folder, _, before = supervised
  cache = folder.parent / 'cache'
  new = {
    path.relative_to(cache).parts[0]
    for path in contents(cache).keys() - before.keys()
  }
  assert new == {'identifier'}
  # Natural and semantic kinds, two seeds.
  assert len(list((cache / 'identifier').iterdir())) == 4
  assert sorted(path.stem for path in (folder / 'cells').iterdir()) == CELLS


def test_rows_agree_with_the_kept_logits(supervised):
  folder, *_ = supervised
  kinds = {'natural': 'IN-A', 'natural_plus': 'IN-A+'}
  found = {
    row['tested_on']: row['value']
    for row in rows(folder)
    if row['metric'] == ACCURACY and row.get('trained_on') == 'all natural'
  }
  assert found.keys() == {*kinds.values(), 'mean'}
  right = []
  with np.load(folder / 'arrays.npz') as arrays:
    for seed in range(2):
      logits = arrays[f'logits/vgg11 x0.125/seed{seed}/natural']
      assert logits.shape[1:] == (10, 3)
      called = logits[:3].argmax(-1) != 0
      right.append([1 - called[0].mean(), *called[1:].mean(1)])
  clean, *attacked = 100 * np.mean(right, axis=0)
  for name, hit in zip(kinds.values(), attacked, strict=True):
    assert found[name] == pytest.approx((clean + hit) / 2, abs=1e-6)
  assert found['mean'] == pytest.approx((clean + np.mean(attacked)) / 2)


def test_results_and_report_are_whole(supervised):
  folder, *_ = supervised
  found = results(folder)
  assert [c['claim'][:2] for c in found['claims']] == ['C7'] * 3
  assert all(math.isfinite(row['value']) for row in found['rows'])
  metrics = {row['metric'] for row in found['rows']}
  assert metrics >= {
    ACCURACY,
    'AUC (%)',
    'gain in accuracy (points)',
    'called adversarial (%)',
  }
  alarms = {
    (row['category'], row['pictures']): row['value']
    for row in found['rows']
    if row.get('role') == 'alarm'
  }
  for category in ('natural', 'semantic'):
    # Clean pictures after the path of an attacked one are the same pictures.
    assert alarms[category, 're-encoded clean'] == alarms[category, 'clean']
  figures = {path.stem for path in (folder / 'figures').iterdir()}
  assert figures == {
    f'{what}-{category}-vgg11-x0.125'
    for what in ('accuracy', 'names')
    for category in ('natural', 'semantic')
  }
  assert 'Figure 6' in (folder / 'table.md').read_text()


def test_rerun_computes_nothing_and_gives_the_same_rows(supervised, run):
  folder, command, _ = supervised
  before, wanted = contents(folder.parent / 'cache'), rows(folder)
  assert run(*command, '--batch_size=100') == 0
  assert contents(folder.parent / 'cache') == before
  assert rows(folder) == wanted


def test_shards_and_plan_know_the_cells(supervised, run, tmp_path, capsys):
  folder, command, _ = supervised
  cache = f'--cache_dir={folder.parent / "cache"}'
  part = (*command[:-1], cache, f'--workdir={tmp_path / "part"}')
  assert run(*part, '--shard=0/2') == 0
  assert CELLS[1] in capsys.readouterr().out
  assert run(*part, '--plan') == 0
  plan = capsys.readouterr().out
  assert '1 finished' in plan and 'identifier' in plan
  assert run(*part, '--shard=1/2') == 0
  assert rows(tmp_path / 'part') == rows(folder)


def test_a_single_kind_of_each_category_is_refused(run, tmp_path, capsys):
  code = run(
    '--exp=attack_supervision', '--attacks=fgsm,hsv', f'--workdir={tmp_path}'
  )
  assert code == 2
  assert 'fgsm, hsv' in capsys.readouterr().err


def test_printed_numbers_stand_where_they_belong():
  printed = supervision.report.printed('figure6')
  place = ('VGG16', 'all natural')
  for kind in ('IN-A', 'IN-A+'):
    assert printed[*place, 'mean'] - printed['VGG16', kind, 'mean'] == (
      pytest.approx(printed[*place, f'minus {kind}'])
    )
  assert json.dumps(sorted(set(printed.values()))) == (
    '[1.6, 3.15, 86.95, 88.5, 90.1]'
  )
