"""Atomic files, the content-addressed cache and the workdir guard."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import storage
from jaxadv.errors import DataError, UserError


@dataclasses.dataclass(frozen=True)
class Config:
  rate: float = 0.1
  sizes: tuple[int, ...] = (1, 2)
  inner: Any = None


class Pair(NamedTuple):
  first: int
  second: int


def test_fingerprint_is_the_same_in_another_process():
  value = {
    'b': Config(inner={'x': np.arange(3)}),
    'a': [1, 2.5, None, 'x', True],
    'set': {'p', 'q', 'r'},
  }
  code = textwrap.dedent("""
    import dataclasses, numpy as np
    from jaxadv import storage
    @dataclasses.dataclass(frozen=True)
    class Config:
      rate: float = 0.1
      sizes: tuple = (1, 2)
      inner: object = None
    print(storage.fingerprint({
      'a': (1, 2.5, None, 'x', True),
      'set': {'r', 'q', 'p'},
      'b': Config(inner={'x': np.arange(3)}),
    }))
  """)
  out = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'PYTHONHASHSEED': '7'},
    capture_output=True,
    text=True,
    check=True,
  )
  assert out.stdout.strip() == storage.fingerprint(value)


DIFFERENT = [
  None,
  0,
  0.0,
  False,
  '0',
  b'0',
  1e-8,
  [1, 2],
  [[1], 2],
  {'a': 1},
  {1: 'a'},
  Pair(1, 2),
  Config(),
  Config(rate=0.2),
  np.zeros(4, np.float32),
  np.zeros((2, 2), np.float32),
  np.zeros(4, np.int32),
  np.asarray(0.5, np.float32),
  jax.random.key(0),
  jax.random.key(1),
  json.dumps,
  Config,
]


def test_different_values_have_different_fingerprints():
  found = [storage.fingerprint(value) for value in DIFFERENT]
  assert len(set(found)) == len(DIFFERENT)


def test_fingerprint_does_not_tell_numpy_from_jax_or_a_view():
  array = np.arange(12.0, dtype=np.float32).reshape(3, 4)
  same = [jnp.asarray(array), np.asfortranarray(array), array.copy()]
  assert {storage.fingerprint(x) for x in same} == {storage.fingerprint(array)}


@pytest.mark.parametrize('value', [lambda x: x, object(), {'f': lambda: 0}])
def test_fingerprint_refuses_what_has_no_lasting_identity(value):
  with pytest.raises(TypeError, match='fingerprint'):
    storage.fingerprint(value)


def test_json_and_npz_come_back(tmp_path):
  value = {'a': [1, 2.5], 'b': None}
  storage.write_json(tmp_path / 'deep' / 'x.json', value)
  assert storage.read_json(tmp_path / 'deep' / 'x.json') == value
  storage.write_npz(tmp_path / 'x.npz', a=jnp.arange(3), b=np.ones((2, 2)))
  arrays = storage.read_npz(tmp_path / 'x.npz')
  np.testing.assert_array_equal(arrays['a'], [0, 1, 2])
  assert arrays['b'].shape == (2, 2)
  assert sorted(os.listdir(tmp_path)) == ['deep', 'x.npz']


@pytest.mark.parametrize('name', ['x.json', 'x.npz'])
def test_broken_and_absent_files_are_named(tmp_path, name):
  read = storage.read_json if name.endswith('json') else storage.read_npz
  with pytest.raises(DataError, match=name):
    read(tmp_path / name)
  storage.write_npz(tmp_path / name, a=np.arange(1000))
  whole = (tmp_path / name).read_bytes()
  (tmp_path / name).write_bytes(whole[:500])
  with pytest.raises(DataError, match=name):
    read(tmp_path / name)


def test_json_refuses_numbers_that_are_not_finite(tmp_path):
  with pytest.raises(DataError, match=r'x\.json'):
    storage.write_json(tmp_path / 'x.json', {'a': float('nan')})


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_names_the_file_and_leaves_the_old_one(
  tmp_path, monkeypatch, code
):
  storage.write_json(tmp_path / 'x.json', 1)

  def full(_):
    raise OSError(code, 'full')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(DataError, match=r'disk is full.*x\.json'):
    storage.write_json(tmp_path / 'x.json', 2)
  assert storage.read_json(tmp_path / 'x.json') == 1
  assert os.listdir(tmp_path) == ['x.json']


def test_other_system_errors_pass_through(tmp_path):
  with pytest.raises(PermissionError), storage.explain_full_disk(tmp_path):
    raise PermissionError(errno.EACCES, 'no')


def test_cache_makes_once_and_never_shows_half_an_entry(tmp_path):
  cache = storage.Cache(tmp_path)
  calls = []

  def make(folder, work):
    calls.append(1)
    assert not list(folder.iterdir())
    assert folder.parent.name.endswith('.partial')
    (work / 'part').touch()
    (folder / 'x').write_text('whole')

  path = cache.get_or_make('unit', 1, {'a': 1}, make)
  assert (path / 'x').read_text() == 'whole'
  assert storage.read_json(path / 'entry.json')['config'] == {'a': 1}
  assert cache.get_or_make('unit', 1, {'a': 1}, make) == path
  assert len(calls) == 1
  assert os.listdir(path.parent) == [path.name]
  assert cache.get_or_make('unit', 2, {'a': 1}, make) != path
  assert cache.get_or_make('unit', 1, {'a': 2}, make) != path
  assert len(calls) == 3


def test_cache_keeps_work_of_a_failure_and_not_its_half_made_folder(tmp_path):
  cache = storage.Cache(tmp_path)

  def fail(folder, work):
    (folder / 'half').touch()
    (work / 'part').write_text('done')
    raise RuntimeError('stop')

  with pytest.raises(RuntimeError, match='stop'):
    cache.get_or_make('unit', 1, 0, fail)
  assert not cache.entry('unit', 1, 0).exists()

  def succeed(folder, work):
    (folder / 'x').write_text((work / 'part').read_text())

  path = cache.get_or_make('unit', 1, 0, succeed)
  assert sorted(os.listdir(path)) == ['entry.json', 'x']
  assert (path / 'x').read_text() == 'done'


def test_full_disk_in_make_is_explained(tmp_path):
  def make(folder, work):
    raise OSError(errno.ENOSPC, 'full')

  with pytest.raises(DataError, match='disk is full'):
    storage.Cache(tmp_path).get_or_make('unit', 1, 0, make)


def test_cache_in_an_impossible_place_is_a_user_error(tmp_path):
  (tmp_path / 'file').touch()
  cache = storage.Cache(tmp_path / 'file' / 'cache')
  with pytest.raises(UserError, match='--cache_dir'):
    cache.get_or_make('unit', 1, 0, lambda folder, work: None)


MAKER = """
import os, pathlib, sys, time
from jaxadv import storage

def make(folder, work):
  with open(sys.argv[2], 'a') as log:
    log.write(f'{os.getpid()}\\n')
  (work / 'part').touch()
  while not pathlib.Path(sys.argv[3]).exists():
    time.sleep(0.01)
  (folder / 'x').touch()

print(storage.Cache(sys.argv[1]).get_or_make('unit', 1, 0, make))
"""


def wait_for(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


@pytest.mark.parametrize('kill_first', [False, True])
def test_second_process_waits_and_takes_over_from_a_killed_one(
  tmp_path, kill_first
):
  root, log, go = (tmp_path / name for name in ('cache', 'log', 'go'))
  command = [sys.executable, '-c', MAKER, root, log, go]
  start = lambda: subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  first = start()
  wait_for(log.exists)
  second = start()
  # The second one is at the lock when it has the lock file open.
  lock = root / '.locks' / storage.Cache(root).entry('unit', 1, 0).name
  wait_for(lambda: _has_open(second.pid, lock))
  if kill_first:
    first.send_signal(signal.SIGKILL)
    first.wait()
  go.touch()
  out = second.communicate(timeout=60)[0]
  assert second.returncode == 0
  makers = log.read_text().split()
  if kill_first:
    assert makers == [str(first.pid), str(second.pid)]
  else:
    assert first.communicate(timeout=60)[0] == out
    assert makers == [str(first.pid)]
  assert sorted(os.listdir(out.strip())) == ['entry.json', 'x']
  assert os.listdir(root / 'unit') == [os.path.basename(out.strip())]


def _has_open(pid, path):
  folder = f'/proc/{pid}/fd'
  if not os.path.isdir(folder):
    pytest.skip('needs /proc to see that the second process waits')
  for name in os.listdir(folder):
    try:
      if os.path.realpath(os.path.join(folder, name)) == str(path):
        return True
    except FileNotFoundError:
      pass
  return False


def test_workdir_is_reopened_by_its_own_configuration_only(tmp_path):
  workdir = tmp_path / 'a' / 'run'
  config = Config(inner=Config(rate=0.5))
  assert storage.open_workdir(workdir, config) == workdir
  assert storage.open_workdir(workdir, config) == workdir
  other = Config(sizes=(1, 2, 3), inner=Config(rate=0.25))
  with pytest.raises(UserError) as caught:
    storage.open_workdir(workdir, other)
  message = str(caught.value)
  assert 'inner.rate: 0.5 there, 0.25 now' in message
  assert 'sizes: [1, 2] there, [1, 2, 3] now' in message
  assert 'inner.sizes' not in message
  (workdir / 'config.json').write_text('{')
  with pytest.raises(DataError, match=r'config\.json'):
    storage.open_workdir(workdir, config)


def test_workdir_in_an_impossible_place_is_a_user_error(tmp_path):
  (tmp_path / 'file').touch()
  for path in (tmp_path / 'file', tmp_path / 'file' / 'run'):
    with pytest.raises(UserError, match='--workdir'):
      storage.open_workdir(path, {})
