"""Several processes as hosts of one run, each with simulated CPU devices."""

import json
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import launch
from jaxadv.errors import UserError
from tests.experiments.conftest import NETWORKS

ROOT = pathlib.Path(launch.__file__).parent
BUILD = (ROOT / 'BUILD.md').read_text(encoding='utf-8')

TINY = (
  '--exp=unseen_transfer',
  *(re.sub('epochs=.*', 'epochs=2', option) for option in NETWORKS),
  '--num_pictures=20',
  '--attacks=fgsm,hsv',
  '--num_trials=3',
  '--detector_epochs=1',
  '--num_seeds=1',
)


def start(num_devices, *command):
  environment = os.environ | {
    'JAX_NUM_CPU_DEVICES': str(num_devices),
    'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
  }
  return subprocess.Popen(
    [sys.executable, *map(str, command)],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(processes):
  try:
    outputs = [process.communicate(timeout=500) for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, (_, stderr) in zip(processes, outputs, strict=True):
    assert process.returncode == 0, stderr
  return [stdout for stdout, _ in outputs]


def free_port():
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


@pytest.mark.slow
def test_two_hosts_find_what_one_finds(tmp_path):
  worker, address = ('-m', 'tests.hosts_worker'), f'localhost:{free_port()}'
  one = [start(4, *worker, tmp_path / 'one')]
  two = [start(2, *worker, tmp_path / 'two', address, 2, i) for i in range(2)]
  finish(one + two)
  found, wanted = (
    np.load(tmp_path / name / 'found.npz') for name in ('two', 'one')
  )
  assert set(found.files) == set(wanted.files)
  for name in found.files:
    np.testing.assert_allclose(
      found[name], wanted[name], rtol=1e-4, atol=1e-4, err_msg=name
    )
  np.testing.assert_array_equal(found['images'], wanted['images'])
  assert not list((tmp_path / 'two' / 'cache').glob('*/*.partial'))


@pytest.mark.slow
@pytest.mark.slow
def test_run_on_two_hosts_gives_the_rows_of_one(tmp_path):
  one, two = tmp_path / 'one', tmp_path / 'two'
  finish([start(8, 'launch.py', *TINY, f'--workdir={one / "run"}')])
  # The victim comes from the same file: rounding that differs in the sums of
  # its training would become other attacked pictures.
  for unit in ('data', 'classifier'):
    shutil.copytree(one / 'cache' / unit, two / 'cache' / unit)
  command = ('launch.py', *TINY, f'--workdir={two / "run"}', '--num_hosts=2')
  coordinator = f'--coordinator=localhost:{free_port()}'
  outputs = finish(
    [start(4, *command, coordinator, f'--host_index={i}') for i in range(2)]
  )
  assert ['report.html' in output for output in outputs] == [True, False]
  wanted, found = (
    json.loads((folder / 'run' / 'results.json').read_text())['rows']
    for folder in (one, two)
  )
  for row, other in zip(found, wanted, strict=True):
    for name in ('value', 'ci_low', 'ci_high'):
      if row[name] is not None:
        assert row.pop(name) == pytest.approx(other.pop(name), abs=1e-3)
    assert row == other


@pytest.mark.parametrize(
  'options',
  [
    ['--coordinator=first:1234'],
    ['--num_hosts=2', '--host_index=0'],
    ['--coordinator=first:1234', '--num_hosts=2', '--host_index=2'],
  ],
)
def test_half_told_hosts_are_refused(options):
  values, _ = launch.parse(['launch.py', '--exp=unseen_transfer', *options])
  with pytest.raises(UserError, match='host_index'):
    launch.check_hosts(values)


def commands():
  """The commands of BUILD.md with shell variables filled in."""
  joined = BUILD.replace('\\\n', ' ')
  for line in re.findall(r'python launch\.py ([^\n`|&]*)', joined):
    if '--help' not in line:
      yield re.sub(r'\$\{?\w+\}?', '1', line).strip('\'"]')


@pytest.mark.parametrize('command', list(commands()))
def test_commands_of_build_md_are_taken(command):
  known, module = launch.parse(['launch.py', *shlex.split(command)])
  launch.check_hosts(known)
  if module is not None:
    launch.configure(known, module)
