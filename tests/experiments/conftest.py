"""Tiny runs of the experiments, in this process and in others."""

import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import jax
import pytest

import launch
from jaxadv.training import mesh

ROOT = pathlib.Path(launch.__file__).parent

# The backbone is the victim, so that there is one network less to train.
NETWORKS = (
  '--image_size=16',
  '--victim=vgg11:0.125',
  '--victim_epochs=16',
  '--backbones=vgg11:0.125',
  '--backbone_epochs=16',
)
# A kind or two of each category.
TINY = (
  *NETWORKS,
  '--num_pictures=20',
  '--attacks=natural,natural_plus,fgsm,ni_plus,hsv',
  '--num_trials=3',
  '--reference=vgg13:0.0625',
  '--reference_epochs=1',
  '--detector_epochs=1',
  '--num_seeds=2',
)


# Of the gcd paper: an attack of each sort, the least that can be learnt from.
TINY_GCD = (
  '--heldout_split=train[1200:1400]',
  '--victim=vgg11:0.05',
  '--victim_epochs=12',
  '--attacks=pgd:num_steps=5:step_size=0.1,deepfool,ddn_t:num_steps=15',
  '--num_train=20',
  '--num_valid=10',
  '--num_test=20',
  '--detector=vgg11:0.05',
  '--detector_epochs=2',
  '--num_seeds=2',
  '--tws_pictures=10',
  '--tws_tuned=10',
  '--tws_cap=5',
  '--tws_cap_t=5',
  '--pixelcnn_filters=4',
  '--pixelcnn_blocks=1',
  '--pixelcnn_epochs=1',
  '--pixelcnn_pictures=32',
  '--purified_pictures=4',
  '--purified_radii=8',
  '--purified_valid=2',
  '--white_pictures=6',
  '--white_attacks=pgd:num_steps=8,ddn:num_steps=16',
  '--betas=1',
  '--num_draws=2',
  '--alphas=0.3,0.7',
  '--repair_copies=1',
  '--repair_epochs=1',
  '--adversarial_growth=0.5',
  '--adversarial_epochs=1',
  '--adversarial_pictures=40',
  '--training_attacks=pgd:num_steps=2,ddn:num_steps=2',
)


class Launched(NamedTuple):
  """A finished command."""

  code: int
  stdout: str
  stderr: str


@pytest.fixture(scope='session')
def run():
  """Runs the command line in this process, on one of its devices."""

  def run(*arguments):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(mesh, 'all_devices', lambda: None)
      return launch.main(['launch.py', *map(str, arguments)])

  return run


@pytest.fixture(scope='session')
def finished(run, tmp_path_factory):
  """The folder of a finished tiny run of unseen_transfer, not to change."""
  folder = tmp_path_factory.mktemp('runs') / 'unseen'
  assert run('--exp=unseen_transfer', *TINY, f'--workdir={folder}') == 0
  return folder


@pytest.fixture(scope='session')
def gcd_run(tmp_path_factory, worker_id):
  """Runs an experiment of the gcd paper in a tiny form: (name, *flags)."""
  runs = tmp_path_factory.mktemp('gcd')
  base = tmp_path_factory.getbasetemp()
  # What one process of the tests has made, the others find.
  cache = (base if worker_id == 'master' else base.parent) / 'gcd_cache'

  def run(name, *flags):
    workdir = runs / '-'.join([name, *flags])
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(mesh, 'all_devices', lambda: None)
      folders = (f'--workdir={workdir}', f'--cache_dir={cache}')
      arguments = (f'--exp={name}', *folders, *TINY_GCD, *flags)
      assert launch.main(['launch.py', *arguments]) == 0
    return workdir

  run.cache = cache
  return run


@pytest.fixture(scope='session')
def start():
  """Starts the command line as a process of its own, with one device."""
  started = []

  def start(*arguments):
    environment = os.environ | {
      'JAX_NUM_CPU_DEVICES': '1',
      'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
    }
    process = subprocess.Popen(
      [sys.executable, ROOT / 'launch.py', *map(str, arguments)],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()
    process.communicate()
