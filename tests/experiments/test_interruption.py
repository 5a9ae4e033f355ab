"""Runs that are killed, and runs that share a cache at the same time."""

import json
import random
import time

import pytest

from tests.experiments.conftest import NETWORKS

# Real kills of real processes.
pytestmark = pytest.mark.slow

SMALL = (
  '--exp=unseen_transfer',
  *NETWORKS,
  '--num_pictures=20',
  '--attacks=fgsm',
  # More than there are between two checkpoints.
  '--detector_epochs=12',
  '--num_seeds=1',
)


def rows(folder):
  return json.loads((folder / 'results.json').read_text())['rows']


def finish(process):
  stdout, stderr = process.communicate(timeout=300)
  assert process.returncode == 0, stderr
  assert 'report.html' in stdout


def kill_after(process, text, seconds):
  """Kills -9 a while after a line with `text`; False if it was too late."""
  for line in process.stderr:
    if text in line:
      break
  time.sleep(seconds)
  early = process.poll() is None
  process.kill()
  process.communicate()
  return early


@pytest.fixture(scope='module')
def undisturbed(start, tmp_path_factory):
  folder = tmp_path_factory.mktemp('undisturbed') / 'run'
  finish(start(*SMALL, f'--workdir={folder}'))
  return rows(folder)


def test_killed_run_ends_like_an_undisturbed_one(start, undisturbed, tmp_path):
  command = (*SMALL, f'--workdir={tmp_path / "run"}')
  assert kill_after(start(*command), 'victim', 2)
  assert kill_after(start(*command), 'detectors', 1)
  assert not (tmp_path / 'run' / 'results.json').exists()
  finish(start(*command))
  assert rows(tmp_path / 'run') == undisturbed
  assert not list((tmp_path / 'cache').glob('*/*.partial'))


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(3))
def test_killed_at_random_moments(start, undisturbed, tmp_path, seed):
  rng = random.Random(seed)
  command = (*SMALL, f'--workdir={tmp_path / "run"}')
  kills = 0
  # Longer and longer, so that it comes to an end.
  for attempt in range(8):
    kills += kill_after(start(*command), '', rng.uniform(0, 2 + attempt))
  assert kills > 2
  finish(start(*command))
  assert rows(tmp_path / 'run') == undisturbed


@pytest.mark.slow
def test_two_processes_share_a_cache(start, undisturbed, tmp_path):
  folders = [tmp_path / 'one', tmp_path / 'other']
  processes = [start(*SMALL, f'--workdir={folder}') for folder in folders]
  for process, folder in zip(processes, folders, strict=True):
    finish(process)
    assert rows(folder) == undisturbed
  assert not list((tmp_path / 'cache').glob('*/*.partial'))
