"""Resuming a killed training, and checkpoints of another one."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxadv.errors import UserError
from jaxadv.training import (
  data_mesh,
  delete_checkpoints,
  fit,
  fit_members,
  loop,
)
from tests.training.nets import (
  CONFIG,
  TASK,
  TRAIN,
  VALID,
  assert_close,
  make_data,
)

KEY = jax.random.key(5)

CHILD = textwrap.dedent("""
  import os, signal, sys
  import jax, numpy as np
  from jaxadv.training import fit_members
  from tests.training.nets import CONFIG, TASK, TRAIN, VALID, make_data

  directory, kill_after, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]

  def progress(done, of, row):
    print(done, flush=True)
    if done == kill_after:
      os.kill(os.getpid(), signal.SIGKILL)

  state, history = fit_members(
    jax.random.split(jax.random.key(5), 2), TASK, make_data(), TRAIN, VALID,
    CONFIG, checkpoint_dir=directory, checkpoint_every=2, progress=progress,
  )
  leaves = jax.tree.leaves(state) + [history[name] for name in sorted(history)]
  np.savez(out, *map(np.asarray, leaves))
""")


def run_child(directory, kill_after, out):
  root = Path(__file__).parents[2]
  return subprocess.run(
    [sys.executable, '-c', CHILD, directory, str(kill_after), out],
    env=os.environ | {'PYTHONPATH': str(root)},
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed_to_the_bit(tmp_path):
  whole, parts = tmp_path / 'whole.npz', tmp_path / 'parts.npz'
  assert run_child(tmp_path / 'a', 0, whole).stdout.split() == list('12345')
  killed = run_child(tmp_path / 'b', 3, parts)
  assert killed.returncode == -signal.SIGKILL
  assert not parts.exists()
  # What a kill in the middle of a save leaves behind.
  (tmp_path / 'b' / '4.orbax-checkpoint-tmp').mkdir()
  resumed = run_child(tmp_path / 'b', 0, parts)
  assert resumed.stdout.split() == list('345'), resumed.stderr
  with np.load(whole) as wanted, np.load(parts) as found:
    assert wanted.files == found.files
    for name in wanted.files:
      np.testing.assert_array_equal(found[name], wanted[name])


def test_keeps_two_and_resumes_on_other_devices(tmp_path):
  data = make_data()
  args = (KEY, TASK, data, TRAIN, VALID, CONFIG)
  done = []
  kwargs = dict(
    checkpoint_dir=tmp_path,
    checkpoint_every=1,
    progress=lambda epoch, of, row: done.append(epoch),
  )
  first = fit(*args, **kwargs)
  steps = [name for name in os.listdir(tmp_path) if name.isdigit()]
  assert sorted(steps) == ['4', '5']
  assert done == [1, 2, 3, 4, 5]
  if jax.device_count() >= 8:
    kwargs['mesh'] = data_mesh(jax.devices()[:8])
  again = fit(*args, **kwargs)
  assert done == [1, 2, 3, 4, 5]
  assert_close(again.state, first.state, rtol=0, atol=0)
  assert again.history.keys() == first.history.keys()
  for name, values in first.history.items():
    np.testing.assert_array_equal(again.history[name], values)
  delete_checkpoints(tmp_path)
  assert not tmp_path.exists()
  delete_checkpoints(tmp_path)


def test_checkpoints_of_another_training_are_refused(tmp_path, monkeypatch):
  config = dataclasses.replace(CONFIG, num_epochs=1)
  data = make_data()
  keys = KEY[None]

  def train(keys=keys, data=data, train=TRAIN, config=config):
    kwargs = dict(checkpoint_dir=tmp_path, checkpoint_every=1)
    return fit_members(keys, TASK, data, train, VALID, config, **kwargs)

  train()
  other = dataclasses.replace(config, learning_rate=0.5)
  with pytest.raises(
    UserError, match=r'config.learning_rate: 0.02 there, 0.5 now'
  ):
    train(config=other)
  with pytest.raises(UserError, match=r'\(keys: '):
    train(keys=jax.random.key(6)[None])
  with pytest.raises(UserError, match=r'\(train_indices: '):
    train(train=TRAIN[::-1])
  with pytest.raises(UserError, match=r'\(data: '):
    train(data=make_data(seed=1))
  # As after an edit of the loop: half of the epochs would be another's.
  monkeypatch.setattr(loop, 'code_version', lambda name: f'another {name}')
  with pytest.raises(UserError, match=r'code: .* now\)'):
    train()
