"""Robustness measured by the command line, and of a function in Python."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
from experiments.tools import verify
from jaxadv import reports
from jaxadv.attacks import check, deepfool, fgsm, pgd
from jaxadv.data import sources
from jaxadv.errors import DataError, DoubtWarning, UserError
from jaxadv.evaluation import (
  measure_robustness,
  measuring,
  named,
  record,
  robustness,
)
from jaxadv.experiment import stream
from jaxadv.norms import linf_ball
from jaxadv.storage import as_plain, read_json, read_npz
from jaxadv.training.classifiers import standardise
from tests.experiments.conftest import NETWORKS

# The victim of the other experiments' tiny runs.
NETWORK = ('--model=vgg11:0.125', '--epochs=16', NETWORKS[0])
TINY = (
  *NETWORK,
  '--num_pictures=12',
  '--attacks=fgsm,bim:num_steps=2',
  '--epsilons=4/255,0.1',
  '--nochecks',
)


@pytest.fixture(scope='module')
def command():
  """Runs the command line in this process, on one of its devices."""

  def command(*arguments):
    with pytest.MonkeyPatch.context() as patch:
      for module in (verify, measuring):
        patch.setattr(module, 'all_devices', lambda: None)
      return launch.main(['launch.py', '--exp=verify', *map(str, arguments)])

  return command


@pytest.fixture(scope='module')
def alone():
  """Keeps `measure` to one device."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(measuring, 'all_devices', lambda: None)
    yield


def slow(epsilon):
  """An attack of the user's with a budget."""
  return pgd(linf_ball(epsilon), epsilon / 8, 40)


@pytest.fixture
def undrawn(monkeypatch):
  """Leaves the record without figures, which take longest."""
  monkeypatch.setattr(reports, 'write_report', reports.write)


def recorded(classifier, images, labels, folder, **options):
  """Measures, and reads the record that is left."""
  measure_robustness(classifier, images, labels, workdir=folder, **options)
  return reports.read(folder)[0]


def values(folder, metric=record.ROBUST):
  rows = read_json(folder / 'results.json')['rows']
  return {
    (row['attack'], row['epsilon']): row['value']
    for row in rows
    if row['metric'] == metric
  }


@pytest.fixture(scope='module')
def verified(finished, command, tmp_path_factory):
  """A run whose network was in the cache of another experiment."""
  cache = finished.parent / 'cache'
  before = set((cache / 'classifier').iterdir())
  folder = tmp_path_factory.mktemp('verify') / 'run'
  assert command(*TINY, f'--workdir={folder}', f'--cache_dir={cache}') == 0
  assert set((cache / 'classifier').iterdir()) == before
  return folder


def test_a_run_leaves_a_report(verified):
  found = values(verified)
  assert {name for name, _ in found} == {'all attacks', 'fgsm', TINY[4][15:]}
  for (name, epsilon), value in found.items():
    assert found['all attacks', epsilon] <= value <= found[name, 'clean']
  assert found['all attacks', '0.1'] < found['all attacks', 'clean']
  assert found['fgsm', 'clean'] > 50
  page = (verified / 'report.html').read_text()
  assert page.count('data:image/png;base64,') == 2
  assert 'was not checked' in page and str(verified.parent) not in page
  arrays = read_npz(verified / 'arrays.npz')
  assert arrays['examples/clean'].shape == (2, 3, 16, 16, 3)
  assert arrays['linf/fgsm'].max() == pytest.approx(0.1, abs=1e-6)
  for row in read_json(verified / 'results.json')['rows']:
    assert row['ci_low'] <= row['value'] <= row['ci_high'] and row['n'] <= 12


def test_shards_and_plan_end_in_the_same_report(
  verified, finished, command, tmp_path, capsys
):
  flags = (
    *TINY,
    f'--workdir={tmp_path / "run"}',
    f'--cache_dir={finished.parent / "cache"}',
  )
  assert command(*flags, '--shard=1/2') == 0
  assert 'cell fgsm: run its shard' in (
    (tmp_path / 'run' / 'report.html').read_text()
  )
  capsys.readouterr()
  assert command(*flags, '--plan') == 0
  printed = capsys.readouterr().out
  assert 'fgsm                     to do' in printed
  assert 'bim-num_steps-2          finished' in printed
  assert command(*flags, '--shard=0/2') == 0
  assert values(tmp_path / 'run') == values(verified)
  assert not list((tmp_path / 'run').glob('cells/*.partial'))


@pytest.fixture(scope='module')
def files(finished, verified, tmp_path_factory):
  """The same network as a file of weights, and the pictures as an .npz."""
  folder = tmp_path_factory.mktemp('files')
  for entry in (finished.parent / 'cache' / 'classifier').iterdir():
    made = read_json(entry / 'entry.json')['config']
    # The victim's; backbones of the same form have keys of their own.
    if made['key'] == as_plain(stream(0, 'train vgg11:0.125')):
      shutil.copy(entry / 'variables.npz', folder / 'net.npz')
  digits = sources.load('digits', image_size=16)
  rows = read_npz(verified / 'arrays.npz')['source']
  np.savez(
    folder / 'pictures.npz',
    images=digits.images[rows],
    labels=digits.labels[rows],
    class_names=digits.class_names,
  )
  return folder


def test_the_same_network_from_a_file(verified, files, command, tmp_path):
  code = command(
    *TINY[:1],
    *TINY[2:],
    f'--weights={files / "net.npz"}',
    f'--dataset={files / "pictures.npz"}',
    *standard(),
    f'--workdir={tmp_path}',
  )
  assert code == 0
  found = values(tmp_path)
  assert found['fgsm', 'clean'] == values(verified)['fgsm', 'clean']
  assert found['fgsm', '4/255'] == values(verified)['fgsm', '4/255']


@pytest.mark.parametrize(
  'arguments, parts',
  [
    (['--model=vgg12'], ['vgg12', 'vgg11']),
    (['--model=vgg11:0.25:0'], ['vgg11:0.25:0', 'no usable']),
    (['--attacks=pgd,fgms'], ['fgms', 'perhaps fgsm', 'auto_attack']),
    (['--attacks=pgd,pgd'], ['twice']),
    (['--attacks=pgd:steps=3'], ['steps', 'num_steps']),
    (['--attacks=pgd:num_steps=0'], ['pgd:num_steps=0', 'num_steps is 0']),
    (['--attacks=pgd:num_steps=few'], ['pgd:num_steps=few', 'whole number']),
    (['--attacks=pgd:num_steps=1.5'], ['1.5', 'whole number']),
    (['--attacks=pgd:random_start=maybe'], ['maybe', 'true or false']),
    (['--attacks=pgd:step_size=big'], ['big', 'a number']),
    (['--attacks=pgd:epsilon=1'], ['epsilon', 'loss']),
    (['--attacks=fgsm', '--norm=l2'], ['fgsm', 'linf']),
    (['--attacks=apgd', '--norm=l1'], ['apgd', 'l1']),
    (['--norm=l7'], ['l7', 'linf, l2, l1']),
    (['--epsilons=a'], ['--epsilons', "'a'", '8/255']),
    (['--epsilons=1/0'], ['1/0']),
    (['--epsilons=8'], ['8', '(0, 1]']),
    (['--epsilons=nan'], ['nan', '(0, 1]']),
    (['--epsilons=0.5,1/2'], ['twice']),
    (['--epochs=0'], ['--epochs', '1 or more']),
    (['--mean=0.5', '--std=1'], ['--mean', '--weights']),
    (['--weights=nowhere.npz'], ['nowhere.npz', '.safetensors']),
    (['--weights={net}', '--mean=0.5'], ['--mean has 1', '--std 0']),
    (['--weights={net}', '--model=vgg13:0.125'], ['missing', 'block1_conv2']),
    (['--weights={net}', '--dataset={two}'], ['10 classes', 'has 2']),
    (['--dataset={two}', '--attacks=apgd_t'], ['apgd_t', '4 classes']),
    (['--num_pictures=5000'], ['5000', '0 to take all']),
    (['--dataset=nothing'], ['nothing', 'digits']),
  ],
)
def test_what_cannot_be_is_refused(
  command, files, tmp_path, capsys, arguments, parts
):
  two = tmp_path / 'two.npz'
  np.savez(
    two, images=np.zeros((40, 16, 16), np.uint8), labels=np.arange(40) % 2
  )
  named_files = {'net': files / 'net.npz', 'two': two}
  given = {
    '--image_size': '16',
    '--num_pictures': '4',
    '--model': NETWORK[0][8:],
  }
  given |= dict(text.format(**named_files).split('=', 1) for text in arguments)
  folder = tmp_path / 'run'
  code = command(*(f'{k}={v}' for k, v in given.items()), f'--workdir={folder}')
  complaint = capsys.readouterr().err
  assert code == 2, complaint
  assert len(complaint.splitlines()) == 1
  for part in parts:
    assert part in complaint
  assert not folder.exists()


def standard():
  """Gives the flags of the preprocessing that the training chose."""
  pictures = sources.shuffled(sources.load('digits', image_size=16), 0)
  chosen = standardise(sources.divide(pictures)[0].images)
  return [
    f'--{name}=' + ','.join(map(str, getattr(chosen, name)))
    for name in ('mean', 'std')
  ]


def measured(trained, folder, change=lambda logits: logits, **options):
  given = {'attacks': ['fgsm'], 'epsilons': [0.02, 0.05]} | options
  return recorded(
    lambda images: change(trained.classifier(images)),
    trained.images,
    trained.labels,
    str(folder),
    batch_size=16,
    **given,
  )


def test_a_flattering_classifier_is_found_out(trained, alone, tmp_path):
  """Rounded logits leave gradients nothing to climb."""
  result = measured(trained, tmp_path, lambda logits: jnp.round(logits * 4) / 4)
  assert any('gradients are zero' in text for text in result.warnings)
  for name in ('report.html', 'table.md'):
    text = (tmp_path / name).read_text()
    assert 'Warnings' in text and 'gradients are zero' in text
    # Names of the code are for no reader.
    assert 'zero_gradients' not in text and 'success_at' not in text
    assert 'PGD succeeds within 0.05' in text
  assert f'Warnings: {len(result.warnings)}' in result.answer


def test_success_that_falls_is_told():
  outcome = outcome_of(success=[[1, 1, 1, 0], [1, 0, 0, 0]])
  found = measured_by([(STRONG, outcome)])
  assert '25.0 % at 0.1 to 75.0 % at 0.2' in record.warnings(found)[0]
  rising = outcome_of(success=[[1, 0, 0, 0], [1, 1, 1, 0]])
  assert not record.warnings(measured_by([(STRONG, rising)]))


STRONG = 'pgd:num_steps=40'


def outcome_of(success, linf=None, correct=(1, 1, 1, 1)):
  success = np.array(success, bool)
  if linf is None:
    linf = np.broadcast_to([[0.1], [0.2]], success.shape)
  linf = np.array(linf, float)
  none = np.zeros((0, 2, 2, 3))
  return measuring.Outcome(
    correct=np.array(correct, bool),
    success=success,
    success_uint8=success,
    linf=linf,
    l2=2 * linf,
    l1=3 * linf,
    clean=none,
    attacked=none,
    truth=np.zeros(0, int),
    predicted=np.zeros(0, int),
  )


def measured_by(outcomes, checks=None, norm='linf'):
  images = np.zeros((4, 2, 2, 3))
  subject = measuring.Subject(None, images, None, np.arange(4), (), 'it', {})
  attacks = [
    (named.read_attack(each, norm) if isinstance(each, str) else each, found)
    for each, found in outcomes
  ]
  epsilons = {'0.1': 0.1, '0.2': 0.2}
  return record.Measured(subject, norm, epsilons, attacks, checks)


def checks_of(curve, noise=0.0, warnings=()):
  numbers = {'clean_accuracy': 1.0, 'success_noise': noise}
  return {
    'warnings': list(warnings),
    'numbers': numbers,
    'curve': list(zip((0.1, 0.2, 0.4), curve, strict=True)),
    'n': 4,
  }


def test_what_the_checks_break_counts_in_the_headline():
  outcome = outcome_of(success=[[0, 0, 0, 0], [1, 0, 0, 0]])
  found = measured_by([(STRONG, outcome)], checks_of((0.25, 0.75, 1)))
  answer = record.answer(found)
  assert 'at most 25.0 %' in answer and 'under every attack' not in answer
  assert 'No check found a sign' not in answer
  (warning,) = record.warnings(found)
  assert '75.0 % [30.1, 95.4] in place of 100.0 %' in warning
  assert '25.0 % [4.6, 69.9] in place of 75.0 %' in warning
  lines = {
    (row.keys['attack'], row.keys['epsilon']): row.value
    for row in record.rows(found)
    if row.metric == record.ROBUST
  }
  assert lines[record.CHECK_PGD, '0.2'] == 25
  # Beaten without gradients, where PGD did no better.
  found = measured_by([(STRONG, outcome)], checks_of((0, 0.25, 1), noise=0.5))
  assert 'at most 50.0 %' in record.answer(found)
  assert 'noise of the checks' in record.answer(found)


def test_checks_that_do_no_better_leave_the_headline():
  outcome = outcome_of(success=[[0, 0, 0, 0], [1, 0, 0, 0]])
  found = measured_by([(STRONG, outcome)], checks_of((0, 0.25, 1)))
  assert '75.0 % [30.1, 95.4] under every attack' in record.answer(found)
  assert 'No check found a sign' in record.answer(found)


def test_checks_that_do_a_little_better_count_in_the_headline():
  """The tolerance is one of the warning, not of the bound."""
  success = np.ones((2, 100), bool)
  success[:, 0] = False
  outcome = outcome_of(success, np.full((2, 100), 0.1), np.ones(100))
  checks = checks_of((0.99, 1, 1)) | {'n': 100}
  found = measured_by([(STRONG, outcome)], checks)
  assert not record.warnings(found)
  answer = record.answer(found)
  assert 'at most 0.0 %' in answer and 'which leave 1.0 %' in answer
  assert 'under every attack' not in answer
  assert answer.endswith('may be chance; no check warns of more.')
  # Some of the pictures were checked, and the sentence tells of which it is.
  success[:, 50:] = False
  found = measured_by([(STRONG, outcome_of(success, outcome.linf))], checks)
  found = found._replace(
    outcomes=[(found.outcomes[0][0], outcome._replace(success=success))],
    checks=checks | {'n': 50},
  )
  assert 'at most 0.0 % [0.0, 7.1] of the first 50 ' in record.answer(found)
  assert 'leave 2.0 % [0.4, 10.5] of these and 51.0 % [' in record.answer(found)


def test_every_finding_of_the_checks_is_a_warning():
  outcome = outcome_of(success=[[0, 0, 0, 0], [1, 0, 0, 0]])
  checks = checks_of((0, 0.25, 1), warnings=[('a_new_one', 'the sign')])
  found = measured_by([(STRONG, outcome)], checks)
  assert record.warnings(found) == ['a new one: the sign']
  assert 'Warnings: 1' in record.answer(found)
  assert 'No check found a sign' not in record.answer(found)


@pytest.mark.parametrize(
  'value, text',
  [
    (8 / 255, '8/255'),
    (16 / 255, '16/255'),
    (8 * (1 / 255), '8/255'),
    (np.float32(8 / 255), '8/255'),
    (np.float32(0.03), '0.03'),
    (0.05, '0.05'),
    (0.2, '0.2'),
    (1.0, '1'),
    (1 / 3, '85/255'),
    (1 / 7, '0.14285714285714285'),
    (0.0313725491, '0.0313725491'),
    (1e-13, '1e-13'),
    ('0.0313725491', '0.0313725491'),
  ],
)
def test_radii_are_written_as_people_do_and_lose_nothing(value, text):
  assert named.write_epsilon(value) == text
  (read,) = named.read_epsilons([text], 'linf').values()
  assert np.float32(read) == np.float32(value)
  assert read == pytest.approx(float(value), rel=1e-7)


@pytest.mark.parametrize('one', ['fgsm', ('mine', slow)])
@pytest.mark.parametrize('radius', [8 / 255, '8/255', np.array(8 / 255)])
def test_a_single_attack_or_radius_needs_no_list(
  linear, monkeypatch, one, radius
):
  monkeypatch.setattr(
    robustness, 'measure_cells', lambda work, *rest: (work, [])
  )
  run = lambda **given: measure_robustness(*linear, **given)
  work = run(attacks=one, epsilons=radius)
  assert work.radii == {'8/255': 8 / 255}
  listed = run(attacks=[one], epsilons=[radius])
  names = [[each.text for each in found.attacks] for found in (work, listed)]
  assert names[0] == names[1] and len(names[0]) == 1


def test_without_a_workdir_arrays_are_returned_and_nothing_is_written(
  linear, alone, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  given = {'attacks': 'fgsm', 'epsilons': [0.002, 0.008], 'checks': False}
  found = measure_robustness(*linear, **given)
  assert not list(tmp_path.iterdir())
  recorded(*linear, tmp_path / 'run', **given)
  kept = values(tmp_path / 'run')
  for share, epsilon in zip(found.worst(), ('0.002', '0.008'), strict=True):
    assert 100 * share.value == pytest.approx(kept['all attacks', epsilon])


@pytest.mark.parametrize(
  'given, said',
  [
    ({'attacks': 'pdg'}, "^attacks has no choice 'pdg', perhaps pgd"),
    ({'attacks': ['pgd:x=1']}, '^attacks: .* no hyperparameter x'),
    ({'attacks': [slow(0.1)]}, r"^attacks has an Attack .*\('mine', attack\)"),
    ({'attacks': slow(0.1)}, '^attacks has an Attack without a name'),
    ({'attacks': slow}, '^attacks has a function without a name'),
    ({'attacks': [3]}, '^attacks has an int without a name'),
    ({'epsilons': None}, '^epsilons has None, which is no number'),
    ({'epsilons': [(0.1,)]}, r'^epsilons has \(0.1,\), which is no number'),
    ({'epsilons': 8}, r'^epsilons has 8, .* \(0, 1\]'),
    ({'norm': 'l7'}, "^norm has no choice 'l7'"),
    ({'batch_size': 0}, '^batch_size is 0'),
  ],
)
def test_what_python_callers_give_wrongly_is_said_in_a_sentence(
  linear, tmp_path, given, said
):
  with pytest.raises(UserError, match=said) as error:
    recorded(*linear, str(tmp_path / 'run'), **given)
  assert '--' not in str(error.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'attacks, norm, weak',
  [
    (['fgsm', 'hsv', 'ni_plus', 'deepfool'], 'linf', True),
    (['pgd:num_steps=5'], 'linf', True),
    (['carlini_wagner'], 'linf', True),
    (['carlini_wagner'], 'l2', False),
    (['fgsm', 'apgd'], 'linf', False),
    (['auto_attack'], 'l2', False),
    (['ddn'], 'l1', True),
    (['ead'], 'l1', False),
    ([named.own_attack('mine', lambda e: fgsm(e))], 'linf', True),
    ([named.own_attack('mine', slow)], 'linf', False),
  ],
)
def test_weak_attacks_alone_are_told(attacks, norm, weak):
  outcome = outcome_of([[0, 0, 0, 0], [1, 0, 0, 0]], np.full((2, 4), 0.01))
  pairs = [(attack, outcome) for attack in attacks]
  found = record.warnings(measured_by(pairs, norm=norm))
  assert [text for text in found if 'only weak attacks' in text] == found
  assert bool(found) == weak


def test_usual_attacks_of_every_norm_are_strong():
  for norm, texts in named.USUAL_ATTACKS.items():
    attacks = [named.read_attack(text, norm) for text in texts]
    radii = list(named.read_epsilons((), norm).values())
    named.check_attacks(attacks, radii, (16, 16, 3), 10)
    assert any(attack.is_strong(norm) for attack in attacks)


def test_changes_beyond_the_radius_do_not_count():
  outcome = outcome_of(
    [[1, 1, 0, 0], [1, 1, 1, 0]], [[0.1, 0.11, 1, 1], [0.2] * 4]
  )
  found = measured_by([(STRONG, outcome)])
  assert [each.hits for each in found.robust(*found.outcomes[0])] == [3, 1]
  assert 'leaves its radius in 1 of its successes' in record.warnings(found)[0]


def test_the_worst_case_joins_attacks_and_radii():
  found = measured_by(
    [
      # What it finds at 0.1 it loses at 0.2.
      ('pgd', outcome_of([[1, 0, 0, 0], [0, 1, 0, 0]], [[0.1] * 4, [0.2] * 4])),
      ('deepfool', outcome_of([[1, 1, 1, 0]], [[0.3, 0.05, 0.15, 0.01]])),
    ]
  )
  assert [each.hits for each in found.robust(*found.outcomes[0])] == [3, 3]
  assert [each.hits for each in found.robust(*found.outcomes[1])] == [3, 2]
  assert [each.hits for each in found.worst()] == [2, 1]
  rows = {
    (row.keys['attack'], row.keys.get('column')): row
    for row in record.rows(found)
    if 'Linf' in row.metric
  }
  median = rows['deepfool', 'median']
  assert median.value == pytest.approx(0.15) and median.n == 3


def test_curves_of_a_linear_classifier_are_known(linear, alone, tmp_path):
  result = recorded(
    linear.classifier,
    linear.images,
    linear.labels,
    str(tmp_path),
    attacks=['fgsm', 'deepfool', 'pgd:num_steps=4'],
    epsilons=[0.002, 0.004, 0.008],
    checks=False,
  )
  weights = np.asarray(linear.classifier.variables['weights'])
  logits = np.asarray(linear.classifier(linear.images))
  truth = np.asarray(linear.labels)
  exact = np.full(len(truth), np.inf)
  for rival in range(3):
    rows = np.flatnonzero(truth != rival)
    gap = logits[rows, truth[rows]] - logits[rows, rival]
    slope = np.abs(weights[:, truth[rows]] - weights[:, [rival]]).sum(axis=0)
    exact[rows] = np.minimum(exact[rows], gap / slope)
  found = {
    (row.keys['attack'], row.keys['epsilon']): row.value
    for row in result.rows
    if row.metric == record.ROBUST
  }
  for epsilon in (0.002, 0.004, 0.008):
    far = 1.03 * exact + 2e-4
    low, high = (100 * np.mean(d > epsilon) for d in (exact, far))
    assert low <= found['all attacks', str(epsilon)] <= high
  assert 0 < found['all attacks', '0.004'] < 100
  arrays = read_npz(tmp_path / 'arrays.npz')
  assert (arrays['linf/deepfool'][0] >= exact - 1e-6).all()
  # DeepFool goes a fiftieth too far, and 1e-4 besides.
  np.testing.assert_allclose(
    arrays['linf/deepfool'][0], exact, rtol=0.03, atol=2e-4
  )


def test_interrupted_run_goes_on_where_it_was(
  trained, alone, tmp_path, monkeypatch
):
  attacks = ['fgsm', 'deepfool']
  whole = measured(trained, tmp_path / 'whole', attacks=attacks, checks=False)
  note = robustness.experiment.Progress.note

  def killed(self, text, share=0.0):
    if text == 'deepfool' and share > 0.5:
      raise KeyboardInterrupt
    note(self, text, share)

  monkeypatch.setattr(robustness.experiment.Progress, 'note', killed)
  cut = tmp_path / 'cut'
  with pytest.raises(KeyboardInterrupt):
    measured(trained, cut, attacks=attacks, checks=False)
  assert not (cut / 'results.json').exists()
  first = (cut / 'cells' / 'fgsm.npz').stat().st_mtime_ns
  kept = {path: path.stat().st_mtime_ns for path in cut.glob('**/rows-*.npz')}
  assert kept
  monkeypatch.setattr(robustness.experiment.Progress, 'note', note)
  removed = []
  monkeypatch.setattr(
    measuring.shutil,
    'rmtree',
    lambda path, **_: removed.extend(path.glob('**/rows-*.npz')),
  )
  assert (
    measured(trained, cut, attacks=attacks, checks=False).rows == whole.rows
  )
  assert (cut / 'cells' / 'fgsm.npz').stat().st_mtime_ns == first
  # Batches that were finished were not computed again.
  assert kept.items() <= {p: p.stat().st_mtime_ns for p in removed}.items()


def test_a_workdir_belongs_to_one_classifier(trained, alone, tmp_path):
  measured(trained, tmp_path, checks=False)
  with pytest.raises(UserError, match='classifier'):
    measured(trained, tmp_path, lambda logits: 2 * logits, checks=False)


def test_attacks_are_added_to_a_finished_workdir(
  linear, alone, undrawn, tmp_path
):
  """What is finished is kept; other radii are another workdir."""

  def run(attacks, epsilons=(0.002, 0.004), **options):
    found = recorded(
      linear.classifier,
      linear.images,
      linear.labels,
      str(tmp_path),
      attacks=attacks,
      epsilons=epsilons,
      **{'checks': False} | options,
    )
    return values(tmp_path), found

  first, _ = run(['fgsm'])
  kept = (tmp_path / 'cells' / 'fgsm.npz').stat().st_mtime_ns
  added, found = run(['fgsm', ('mine', slow), ('near', deepfool())])
  assert (tmp_path / 'cells' / 'fgsm.npz').stat().st_mtime_ns == kept
  assert {k: added[k] for k in first if k[0] == 'fgsm'} == {
    k: v for k, v in first.items() if k[0] == 'fgsm'
  }
  # Both follow the gradient of something linear.
  for epsilon in ('0.002', '0.004'):
    assert abs(added['mine', epsilon] - added['fgsm', epsilon]) < 5
  assert added['near', '0.004'] < added['near', 'clean']
  assert found.config['attacks'] == ['fgsm', 'mine', 'near']
  # Another program under the same name is not mistaken for the first.
  changed, _ = run([('mine', lambda epsilon: fgsm(epsilon / 1000))])
  assert changed['mine', '0.004'] == changed['mine', 'clean']
  with pytest.raises(UserError, match='epsilons'):
    run(['fgsm'], epsilons=[0.003])
  with pytest.raises(UserError, match='seed'):
    run(['fgsm'], seed=1)
  with pytest.raises(UserError, match='norm'):
    run(['pgd'], norm='l2')


@pytest.mark.parametrize(
  'attacks, message',
  [
    ([('mine', 3)], 'is an int but must be an Attack'),
    ([('mine', lambda epsilon: epsilon)], 'must be an Attack or'),
    ([('mine', deepfool(targeted=True))], 'it is targeted'),
    ([('', slow)], 'no name'),
    (['fgsm', ('fgsm', slow)], 'twice'),
    ([('all attacks', slow)], 'another name'),
  ],
)
def test_own_attacks_that_cannot_be_are_refused(
  linear, tmp_path, attacks, message
):
  folder = tmp_path / 'run'
  with pytest.raises(UserError, match=message):
    recorded(*linear, str(folder), attacks=attacks)
  assert not folder.exists()


def test_curve_in_l1_is_that_of_a_linear_classifier(
  linear, alone, undrawn, tmp_path
):
  found = recorded(
    *linear,
    str(tmp_path),
    attacks=['pgd:num_steps=20'],
    norm='l1',
    epsilons=[0.05, 0.2, 3],
    checks=False,
  )
  logits, truth = np.asarray(linear.classifier(linear.images)), linear.labels
  weights = np.asarray(linear.classifier.variables['weights'])
  exact = np.full(len(truth), np.inf)
  for rival in range(3):
    rows = np.flatnonzero(truth != rival)
    gap = logits[rows, truth[rows]] - logits[rows, rival]
    slope = np.abs(weights[:, truth[rows]] - weights[:, [rival]]).max(axis=0)
    exact[rows] = np.minimum(exact[rows], gap / slope)
  robust = values(tmp_path)
  for epsilon in (0.05, 0.2, 3):
    least = 100 * np.mean(exact > epsilon)
    assert least <= robust['all attacks', str(epsilon)] <= least + 25
  assert robust['all attacks', '3'] == 0
  assert 'within 3 in L1' in found.answer
  checked = check(
    jax.random.key(0), *linear, norm='l1', epsilon=1.5, num_steps=3
  )
  assert not checked.warnings and checked.curve[3.0] == 1


def test_a_classifier_that_is_never_right_is_measured(linear, alone, tmp_path):
  """Nothing is classified correctly, and nothing is asked of 0 pictures."""

  def classify(images):
    assert len(images), 'called without pictures'
    return linear.classifier(images)

  given = (classify, linear.images, (linear.labels + 1) % 3)
  found = recorded(
    *given, str(tmp_path), attacks=['fgsm', 'deepfool'], checks=False
  )
  assert values(tmp_path)['all attacks', 'clean'] == 0
  assert 'none of the pictures is classified correctly' in found.warnings[0]
  assert (tmp_path / 'report.html').exists()


def test_outputs_that_are_no_logits_are_doubted(
  linear, alone, undrawn, tmp_path
):
  with pytest.warns(DoubtWarning, match='look like probabilities'):
    found = recorded(
      lambda images: jax.nn.softmax(linear.classifier(images)),
      linear.images,
      linear.labels,
      str(tmp_path),
      attacks=['fgsm'],
      checks=False,
    )
  assert any('look like probabilities' in text for text in found.warnings)


def test_pictures_come_as_users_have_them(linear, alone, undrawn, tmp_path):
  run = lambda images, name, labels=linear.labels: recorded(
    linear.classifier,
    images,
    labels,
    str(tmp_path / name),
    attacks=['fgsm'],
    checks=False,
  )
  images = np.asarray(linear.images)
  assert run(images.astype(float), 'a').rows == run(images, 'b').rows
  for wrong, error, message in (
    (images * 255, UserError, 'divide by 255'),
    (images * np.nan, DataError, 'row 0'),
    (images.transpose(0, 3, 1, 2), UserError, 'N, H, W, C'),
    (images[:0], UserError, 'N > 0'),
  ):
    with pytest.raises(error, match=message):
      run(wrong, 'c', linear.labels[: len(wrong)])
  with pytest.raises(UserError, match='0 to 2'):
    run(images, 'c', np.full(24, 3))
  assert not (tmp_path / 'c').exists()


def test_a_refused_run_leaves_its_folder_to_the_corrected_one(
  linear, alone, undrawn, tmp_path
):
  """The checks find no picture that is right, which is told after the start."""
  wrong = (linear.labels + 1) % 3
  given = (str(tmp_path),)
  with pytest.raises(UserError, match='none of the pictures right'):
    recorded(linear.classifier, linear.images, wrong, *given)
  assert not (tmp_path / 'config.json').exists()
  recorded(*linear, *given, attacks=['fgsm'], checks=False)


def test_a_foreign_cell_is_named(linear, alone, undrawn, tmp_path):
  run = lambda: recorded(*linear, str(tmp_path), attacks=['fgsm'], checks=False)
  run()
  np.savez(tmp_path / 'cells' / 'fgsm.npz', other=np.zeros(3))
  with pytest.raises(DataError, match='fgsm.npz'):
    run()


@pytest.mark.slow
def test_killed_run_ends_like_an_undisturbed_one(start, tmp_path):
  flags = ('--exp=verify', *TINY, '--attacks=fgsm,deepfool,ddn:num_steps=30')
  process = start(*flags, f'--workdir={tmp_path / "cut"}')
  for line in process.stderr:
    if 'deepfool' in line:
      break
  process.kill()
  process.communicate()
  for name in ('cut', 'whole'):
    process = start(*flags, f'--workdir={tmp_path / name}')
    stderr = process.communicate()[1]
    assert process.returncode == 0, stderr
  assert values(tmp_path / 'cut') == values(tmp_path / 'whole')
