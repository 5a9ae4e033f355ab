"""Tiny runs of the experiments, in this process and in others."""

import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import jax
import pytest

import launch
from experiments.connection.protocol import networks

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
      patch.setattr(networks, 'mesh', lambda: None)
      return launch.main(['launch.py', *map(str, arguments)])

  return run


@pytest.fixture(scope='session')
def finished(run, tmp_path_factory):
  """The folder of a finished tiny run of unseen_transfer, not to change."""
  folder = tmp_path_factory.mktemp('runs') / 'unseen'
  assert run('--exp=unseen_transfer', *TINY, f'--workdir={folder}') == 0
  return folder


@pytest.fixture(scope='session')
def start():
  """Starts the command line as a process of its own, with one device."""
  started = []

  def start(*arguments):
    environment = os.environ | {
      'XLA_FLAGS': '',
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
