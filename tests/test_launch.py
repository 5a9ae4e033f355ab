"""What the command line says to what it cannot do, and with which code."""

import errno
import importlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
from flax import traverse_util

import launch
from jaxadv import classifier, models
from jaxadv.attacks import ATTACKS
from jaxadv.errors import DoubtWarning
from jaxadv.training import FitResult, TrainConfig, classifiers
from jaxadv.training.state import create_state

ROOT = pathlib.Path(launch.__file__).parent
RUN = '--exp=unseen_transfer'
# So little that whatever is not refused ends soon.
TINY = (
  '--image_size=16',
  '--num_pictures=20',
  '--attacks=fgsm',
  '--victim=vgg11:0.01',
  '--victim_epochs=1',
  '--backbones=vgg11:0.01',
  '--backbone_epochs=1',
  '--detector_epochs=1',
  '--num_seeds=1',
)


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
  """A folder whose cache holds the prepared digits after the first use."""
  return tmp_path_factory.mktemp('launch')


@pytest.fixture
def complaint(shared, tmp_path, capfd, monkeypatch):
  """Runs a command that cannot be; gives its code and its one sentence."""
  monkeypatch.delenv('JAXADV_DATA_DIR', raising=False)
  monkeypatch.chdir(tmp_path)

  def complaint(*arguments):
    arguments = [f'--cache_dir={shared / "cache"}', *map(str, arguments)]
    code = launch.main(['launch.py', *arguments])
    # Lines with the time are progress.
    lines = [
      line
      for line in capfd.readouterr().err.splitlines()
      if not re.match(r'\[ *\d+\.\d s\]', line)
    ]
    assert len(lines) == 1, lines
    sentence = lines[0].removeprefix('launch.py: ')
    assert sentence != lines[0]
    assert 'Traceback' not in sentence
    return code, sentence

  return complaint


@pytest.fixture
def no_training(monkeypatch):
  """Fails a test that gets as far as training a network."""

  def fit(*args, **options):
    raise AssertionError('work has begun')

  monkeypatch.setattr(classifiers, 'fit', fit)


# Arguments, and what the sentence must hold.
REFUSED = [
  ([], ['no experiment', 'unseen_transfer', 'seen_detection']),
  (['--exp=foo'], ["'foo'", 'unseen_transfer', 'seen_detection']),
  (['--exp='], ['unseen_transfer', 'seen_detection']),
  (['--exp=unseen_transfr'], ['perhaps unseen_transfer']),
  ([RUN, '--frobnicate=1'], ['frobnicate', '--help']),
  ([RUN, '--nosave_detectors=3'], ['save_detectors', 'argument']),
  ([RUN, '--save_detectors=maybe'], ["'maybe'", 'true or false']),
  ([RUN, '--seed=x'], ['--seed', "'x'", 'a whole number']),
  ([RUN, '--epsilon=wide'], ['--epsilon', "'wide'", 'a number']),
  ([RUN, '--seed'], ['--seed', '--help']),
  ([RUN, '--dataset='], ['--dataset is empty', '--list']),
  (['--frobnicate'], ['frobnicate', '--help']),
  ([RUN, 'extra'], ["'extra'", '--name=value']),
  ([RUN, '--variant=huge'], ['huge', 'quick', 'small', 'paper']),
  ([RUN, '--num_pictures=many'], ['num_pictures', 'many']),
  ([RUN, '--num_pictures=19'], ['--num_pictures is 19', '20 or more']),
  ([RUN, '--num_pictures=5000'], ['5000', '1348', 'at most 674']),
  ([RUN, '--num_trials=-3'], ['--num_trials is -3', '1 or more']),
  ([RUN, '--num_seeds=0'], ['--num_seeds is 0', '1 or more']),
  ([RUN, '--detector_epochs=0'], ['--detector_epochs is 0', '1 or more']),
  ([RUN, '--reference_pictures=-1'], ['--reference_pictures is -1', '0']),
  ([RUN, '--epsilon=0'], ['--epsilon is 0', '(0, 1]']),
  ([RUN, '--epsilon=8'], ['--epsilon is 8', '(0, 1]']),
  ([RUN, '--epsilon=nan'], ['--epsilon is nan', '(0, 1]']),
  ([RUN, '--seed=-1'], ['--seed is -1', '0 or more']),
  ([RUN, '--batch_size=0'], ['--batch_size is 0', '1 or more']),
  ([RUN, '--shard=2/2'], ["'2/2'", '0 <= i < n']),
  ([RUN, '--shard=half'], ["'half'", '0 <= i < n']),
  ([RUN, '--attacks=fgsm,foo'], ["'foo'", 'natural', 'deepfool', 'hsv']),
  ([RUN, '--attacks='], ['--attacks', 'at least one']),
  ([RUN, '--attacks=fgsm,fgsm'], ['--attacks', 'twice', 'fgsm']),
  ([RUN, '--split_by=leaky'], ["'leaky'", 'source', 'per_class']),
  ([RUN, '--ni_filter=foo'], ["'foo'", 'gaussian']),
  ([RUN, '--backbones=alexnet'], ["'alexnet'", 'vgg16', 'mobilenet']),
  ([RUN, '--victim=alexnet:1'], ["'alexnet'", 'vgg16', 'mobilenet']),
  ([RUN, '--backbones=vgg16:wide'], ['vgg16:wide', 'name:width']),
  ([RUN, '--backbones=vgg16:-1'], ['vgg16:-1', '(0, 4]']),
  ([RUN, '--backbones=vgg16:1,vgg16:1'], ['twice', 'vgg16:1']),
  ([RUN, '--reference=vgg11:0.25'], ['--reference', 'vgg11', 'another']),
  ([RUN, '--backbones=vgg16:1:8'], ['8x8', 'at least 16x16']),
  ([RUN, '--image_size=0'], ['--image_size is 0', '1 or more']),
  ([RUN, '--weights=vgg16'], ['imagenet', 'folder', 'NETWORK=FILE']),
  ([RUN, '--weights=vgg16:0.125=absent.npz'], ['absent.npz', 'no file']),
  ([RUN, '--weights=vgg19=absent.npz'], ['vgg19', 'not a network', 'vgg16']),
  ([RUN, '--dataset=cifar10'], ['cifar10', 'digits', 'prepare']),
  ([RUN, '--dataset=./nowhere'], ['nowhere', 'digits']),
  ([RUN, '--dataset=absent.npz'], ['absent.npz', 'no file']),
  ([RUN, '--data_dir=nowhere', '--dataset=cifar10'], ['nowhere', 'prepare']),
  ([RUN, '--heldout_split=test'], ['test', 'train (1797)']),
  ([RUN, '--plan', '--dataset=cifar10'], ['cifar10', 'prepare']),
]


@pytest.mark.parametrize(
  'arguments, parts', REFUSED, ids=lambda value: ' '.join(value)[:50]
)
def test_what_cannot_be_is_refused_in_one_sentence(
  complaint, no_training, tmp_path, arguments, parts
):
  if RUN in arguments:
    arguments = [*arguments, '--workdir=run']
  code, sentence = complaint(*arguments)
  assert code == 2
  for part in parts:
    assert part in sentence
  # The corrected command may have the folder.
  assert not (tmp_path / 'run' / 'config.json').exists()


@pytest.mark.parametrize(
  'arguments, parts',
  [
    (['--exp=foo'], ['foo', 'unseen_transfer']),
    ([RUN, '--frobnicate=1'], ['frobnicate']),
    ([RUN, '--dataset=cifar10'], ['cifar10', 'prepare']),
  ],
)
def test_as_a_command_it_says_one_sentence(shared, arguments, parts):
  found = subprocess.run(
    [
      sys.executable,
      ROOT / 'launch.py',
      f'--workdir={shared / "command"}',
      *arguments,
    ],
    capture_output=True,
    text=True,
    env={k: v for k, v in os.environ.items() if k != 'JAXADV_DATA_DIR'},
  )
  assert found.returncode == 2
  assert not found.stdout
  lines = [x for x in found.stderr.splitlines() if not x.startswith('[')]
  assert len(lines) == 1
  for part in parts:
    assert part in lines[0]


def test_workdir_of_another_configuration(complaint, no_training, tmp_path):
  workdir = tmp_path / 'run'
  # Stopped by the file that has to be where the cache is.
  (tmp_path / 'cache').write_text('')
  complaint(RUN, *TINY, f'--workdir={workdir}', '--cache_dir=cache')
  (workdir / 'cells').mkdir(exist_ok=True)
  before = '{"seed": 0}'
  (workdir / 'config.json').write_text(before)
  code, sentence = complaint(RUN, *TINY, f'--workdir={workdir}', '--seed=1')
  assert code == 2
  assert 'seed: 0 there, 1 now' in sentence
  assert '--workdir' in sentence
  assert (workdir / 'config.json').read_text() == before


def test_a_file_where_a_folder_has_to_be(complaint, no_training, tmp_path):
  file = tmp_path / 'file'
  file.write_text('mine')
  code, sentence = complaint(RUN, *TINY, f'--workdir={file / "run"}')
  assert code == 2
  assert str(file) in sentence and '--workdir' in sentence
  code, sentence = complaint(RUN, *TINY, f'--workdir={file}')
  assert code == 2
  assert str(file) in sentence and '--workdir' in sentence
  code, sentence = complaint(
    RUN, *TINY, f'--cache_dir={file}', f'--workdir={tmp_path / "run"}'
  )
  assert code == 2
  assert str(file) in sentence and '--cache_dir' in sentence
  assert file.read_text() == 'mine'


def test_weights_that_do_not_fit_list_both_sides(
  complaint, no_training, tmp_path
):
  file = tmp_path / 'weights.npz'
  arrays = {'predictions/bias': np.zeros(10), 'foreign/kernel': np.zeros(3)}
  np.savez(file, **arrays)
  command = (RUN, *TINY, f'--weights=vgg11:0.01={file}', '--workdir=run')
  code, sentence = complaint(*command)
  assert code == 2
  assert str(file) in sentence
  assert 'foreign/kernel' in sentence and 'block1_conv1/kernel' in sentence


def test_weights_of_another_width_name_both_shapes(
  complaint, no_training, tmp_path
):
  file = tmp_path / 'weights.npz'
  np.savez(file, **vgg_arrays(width=0.125))
  command = (RUN, *TINY, f'--weights=vgg11:0.25={file}', '--workdir=run')
  code, sentence = complaint(*command, '--backbones=vgg11:0.25')
  assert code == 2
  assert str(file) in sentence
  assert re.search(r'\b8,?\).*\b16,?\)', sentence)


def test_broken_weights_are_named(complaint, no_training, tmp_path):
  file = tmp_path / 'weights.npz'
  file.write_bytes(b'PK nothing of the sort')
  code, sentence = complaint(
    RUN, *TINY, f'--weights=vgg11:0.01={file}', '--workdir=run'
  )
  assert code == 1
  assert str(file) in sentence


def vgg_arrays(width):
  """Gives zeros by Keras names."""
  module = models.build('vgg11', num_classes=10, width=width, image_size=16)
  template = jax.eval_shape(
    lambda: models.init_variables(jax.random.key(0), module, 16)
  )
  return {
    '/'.join(path[-2:]): np.zeros(leaf.shape)
    for path, leaf in traverse_util.flatten_dict(template).items()
  }


def write_npz(path, **changes):
  rng = np.random.default_rng(0)
  arrays = {
    'images': rng.random((80, 16, 16, 3), np.float32),
    'labels': np.arange(80) % 4,
  }
  np.savez(path, **(arrays | changes))


def test_pictures_with_nan_are_named(complaint, no_training, tmp_path):
  file = tmp_path / 'own.npz'
  images = np.zeros((80, 16, 16, 3), np.float32)
  images[17, 3, 3] = np.nan
  write_npz(file, images=images)
  code, sentence = complaint(RUN, *TINY, f'--dataset={file}', '--workdir=run')
  assert code == 1
  assert 'row 17' in sentence and str(file) in sentence


def test_a_corrupt_record_is_named(complaint, no_training, shared, tmp_path):
  complaint(RUN, *TINY, '--num_pictures=5000')  # Prepares the digits.
  copy = tmp_path / 'cache'
  shutil.copytree(shared / 'cache', copy)
  [file] = copy.glob('data/*/*.array_record-*')
  contents = bytearray(file.read_bytes())
  middle = len(contents) // 2
  contents[middle : middle + 2000] = bytes(2000)
  file.write_bytes(contents)
  code, sentence = complaint(RUN, *TINY, f'--cache_dir={copy}', '--workdir=run')
  assert code == 1
  assert str(file) in sentence


def test_full_disk_names_the_file_and_leaves_nothing_half(
  complaint, monkeypatch, tmp_path
):
  def full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', full)
  code, sentence = complaint(RUN, *TINY, '--workdir=run')
  assert code == 1
  assert 'disk is full' in sentence and 'config.json' in sentence
  assert list((tmp_path / 'run').iterdir()) == []


@pytest.mark.parametrize(
  'message', ['RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes', None]
)
def test_out_of_memory_says_which_batch_size_to_try(
  complaint, monkeypatch, message
):
  def exhausted(*args):
    raise MemoryError if message is None else RuntimeError(message)

  monkeypatch.setattr(
    classifiers, 'fit', lambda key, task, data, *args, **options: fitted(task)
  )
  monkeypatch.setattr(classifier, '_logits', exhausted)
  code, sentence = complaint(RUN, *TINY, '--workdir=run', '--batch_size=64')
  assert code == 1
  assert 'out of memory' in sentence and '--batch_size=32' in sentence


def fitted(task):
  """Gives what a training would, without training."""
  variables = task.init(jax.random.key(0), {}, None)
  return FitResult(create_state(variables, TrainConfig()), {})


def test_help_lists_the_flags_of_the_experiment(capsys):
  assert launch.main(['launch.py', '--help']) == 0
  common = capsys.readouterr().out
  assert '--exp' in common and '--workdir' in common
  assert '--detector_epochs' not in common
  assert launch.main(['launch.py', RUN, '--help']) == 0
  assert '--detector_epochs' in capsys.readouterr().out


def test_default_workdir_tells_settings_apart():
  module = importlib.import_module('experiments.connection.unseen_transfer')

  def folder(*arguments):
    values, _ = launch.parse(['launch.py', RUN, *arguments])
    config = launch.configure(values, module)
    return launch.default_workdir('unseen_transfer', config, module)

  assert folder() == os.path.join('runs', 'unseen_transfer-quick-digits')
  assert folder('--batch_size=3') == folder()
  # Parts of paths make no folders, and two paths no single one.
  start = os.path.join('runs', 'unseen_transfer-quick-own-')
  paths = ['../own.npz', 'a/own.npz', 'own.npz', 'a b/own/', '/c/./own']
  named = {folder(f'--dataset={path}') for path in paths}
  assert len(named) == len(paths)
  for name in named:
    assert name.startswith(start) and len(name) == len(start) + 8
  odd = folder('--dataset=my pictures: all.npz')
  assert '-my_pictures_all-' in odd and folder('--dataset=..') != odd
  found = {folder(), folder('--seed=1'), folder('--num_trials=7')}
  assert len(found) == 3


def test_list_tells_each_name_in_a_sentence(capsys):
  assert launch.main(['launch.py', '--list']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert max(map(len, lines)) <= 80
  sentences = {
    line.split()[0]: line.split(maxsplit=1)[1]
    for line in lines
    if line.startswith('  ') and line[2] != ' '
  }
  names = {*launch.experiments(), *ATTACKS, *models.BACKBONES, 'digits'}
  assert names <= sentences.keys()
  assert sentences['pgd'].startswith('Climbs the loss')
  # One behind a private function, and one behind a partial.
  assert sentences['ni_plus'].startswith('Adds (NI+)')
  assert '1,797' in sentences['digits']


@pytest.mark.parametrize(
  'error, code', [(KeyboardInterrupt, 130), (launch.Terminated, 143)]
)
def test_a_stopped_run_says_so_in_one_line(complaint, monkeypatch, error, code):
  def stopped(*_):
    raise error

  monkeypatch.setattr(launch, 'run', stopped)
  found, sentence = complaint(RUN, *TINY)
  assert found == code
  assert 'finished work is kept, run the same command again' in sentence


def test_a_doubt_is_a_sentence(monkeypatch, capfd):
  monkeypatch.setattr(
    launch,
    'run',
    lambda *_: warnings.warn('so and so', DoubtWarning, stacklevel=1),
  )
  assert launch.main(['launch.py', RUN]) == 0
  assert capfd.readouterr().err == 'launch.py: warning: so and so\n'


@pytest.mark.slow
@pytest.mark.parametrize('number, code', [('SIGINT', 130), ('SIGTERM', 143)])
def test_a_signal_ends_a_run_with_its_code(shared, number, code):
  command = [sys.executable, ROOT / 'launch.py', RUN, *TINY]
  process = subprocess.Popen(
    [*command, f'--workdir={shared / number}'],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  process.stderr.readline()  # Of the first piece of work.
  process.send_signal(getattr(signal, number))
  lines = [
    line for line in process.communicate()[1].splitlines() if line[0] != '['
  ]
  assert process.returncode == code
  assert len(lines) == 1 and 'finished work is kept' in lines[0]


@pytest.mark.parametrize(
  'message, shown',
  [
    ('batch_size is 0', '--batch_size is 0'),
    ('try batch_size=16', 'try --batch_size=16'),
    ('seed is -1; the seed must be', '--seed is -1; the seed must be'),
    ('pass another workdir', 'pass another --workdir'),
    ('--seed is -1, see data/seed=1', '--seed is -1, see data/seed=1'),
    ('images of this seed have NaN', 'images of this seed have NaN'),
  ],
)
def test_errors_of_the_library_name_flags_on_the_command_line(message, shown):
  names = ['seed', 'batch_size', 'workdir', 'images']
  assert launch.with_dashes(message, names) == shown
