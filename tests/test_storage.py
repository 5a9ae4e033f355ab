"""Atomic files, the content-addressed cache and the workdir guard."""

import ast
import dataclasses
import errno
import importlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import storage
from jaxadv.errors import DataError, UserError

ROOT = pathlib.Path(storage.__file__).parents[1]


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


def _bad_header(whole):
  """A whole zip file, of an array whose header is no Python."""
  with zipfile.ZipFile(io.BytesIO(whole)) as file:
    array = file.read('a.npy').replace(b"'shape': (", b"'shape': ((")
  changed = io.BytesIO()
  with zipfile.ZipFile(changed, 'w') as file:
    file.writestr('a.npy', array)
  return changed.getvalue()


def _saved_array():
  file = io.BytesIO()
  np.save(file, np.arange(3))
  return file.getvalue()


def _pytorch():
  changed = io.BytesIO()
  with zipfile.ZipFile(changed, 'w') as file:
    file.writestr('archive/data.pkl', b'weights')
  return changed.getvalue()


BROKEN = {
  'empty': lambda whole: b'',
  'half': lambda whole: whole[: len(whole) // 2],
  'a changed byte': lambda whole: whole[:300] + b'?' + whole[301:],
  'an array': lambda whole: _saved_array(),
  'a page': lambda whole: b'<!DOCTYPE html><html>404 Not Found</html>',
  'text': lambda whole: b'1 2 3',
  'a bad header': _bad_header,
  'weights of PyTorch': lambda whole: _pytorch(),
}


@pytest.mark.parametrize('compressed', [False, True])
@pytest.mark.parametrize('name', BROKEN)
def test_whatever_is_no_npz_is_named(tmp_path, name, compressed):
  path = tmp_path / 'x.npz'
  save = np.savez_compressed if compressed else np.savez
  save(path, a=np.random.default_rng(0).normal(size=1000))
  path.write_bytes(BROKEN[name](path.read_bytes()))
  with pytest.raises(DataError, match=r'cannot read .*x\.npz: .') as caught:
    storage.read_npz(path)
  assert '\n' not in str(caught.value)


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
  with pytest.raises(UserError, match='another cache_dir'):
    cache.get_or_make('unit', 1, 0, lambda folder, work: None)


@pytest.fixture
def code(tmp_path, monkeypatch):
  """A package whose modules can be written; gives its version."""
  monkeypatch.syspath_prepend(tmp_path)

  def version(name='a', **sources):
    folder = tmp_path / 'pack'
    folder.mkdir(exist_ok=True)
    (folder / '__init__.py').touch()
    for module, source in sources.items():
      (folder / f'{module}.py').write_text(textwrap.dedent(source))
    for cached in (storage.code_version, storage._code, storage._spec):
      cached.cache_clear()
    storage._submodules.cache_clear()
    importlib.invalidate_caches()
    return storage.code_version(f'pack.{name}')

  yield version
  storage.code_version.cache_clear()


A = """
'''A.'''
def f():
  '''Gives a number.'''
  from pack import b
  return b.g() + 1
"""
B = 'def g(): return {"x", "y"} == {"z"}'


def test_code_version_changes_with_code_however_far_and_not_with_prose(code):
  first = code(a=A, b=B, c='C = 1', __init__='')
  assert first == code()
  assert first == code(c='C = 2')  # Nobody imports it.
  prose = """
  '''A module.'''


  def f():
    '''Adds.'''
    from pack import b  # Late.
    return b.g() + 1
  """
  assert first == code(a=prose)
  assert first != code(a=prose.replace('+ 1', '+ 2'))
  assert first == code(a=prose)
  assert first != code(b=B + ' or 0')
  assert first == code(b=B)
  assert first != code(__init__='import pack.c')
  assert first == code(__init__='')
  with_c = code(b='from pack.c import C\n' + B)
  assert with_c not in (first, code(c='C = 3'))


@pytest.mark.parametrize(
  'before, after',
  [
    ('f = lambda: 1', 'f = lambda: 1.0'),
    ('f = lambda: 1', 'f = lambda: True'),
    ('f = lambda x: x.real', 'f = lambda x: x.imag'),
    ('def f(a=1): return a', 'def f(a=2): return a'),
    ('f = lambda a, b: a', 'f = lambda b, a: a'),
    ('f = lambda a: a + a', 'f = lambda a: a * a'),
    ('f = lambda: (1, (2, 3))', 'f = lambda: (1, (2, 4))'),
    ('class A:\n  x: int = 1', 'class A:\n  x: int = 2'),
    ('class A:\n  x: int', 'class A:\n  x: float'),
  ],
)
def test_code_version_sees_the_smallest_change(code, before, after):
  assert code(a=before) != code(a=after)


def test_code_version_is_the_same_in_another_process():
  name = 'jaxadv.training.classifiers'
  out = subprocess.run(
    [
      sys.executable,
      '-c',
      f'from jaxadv import storage; print(storage.code_version({name!r}))',
    ],
    env=os.environ | {'PYTHONHASHSEED': '7'},
    capture_output=True,
    text=True,
    check=True,
  )
  assert out.stdout.strip() == storage.code_version(name)


def test_code_version_works_from_a_zip_file(tmp_path, monkeypatch):
  with zipfile.ZipFile(tmp_path / 'wheel.zip', 'w') as file:
    file.writestr('zipped/__init__.py', '')
    file.writestr('zipped/a.py', 'from zipped import b')
    file.writestr('zipped/b.py', 'import jaxadv.errors')
  monkeypatch.syspath_prepend(tmp_path / 'wheel.zip')
  assert storage._code('zipped.a', frozenset({'zipped'}))[1] == {
    'zipped',
    'zipped.b',
  }
  assert len(storage.code_version('zipped.a')) == 16


def test_code_version_follows_all_that_a_training_runs():
  waiting, found = {'jaxadv.training.classifiers'}, set()
  while waiting:
    found |= waiting
    imported = (storage._code(n, frozenset({'jaxadv'}))[1] for n in waiting)
    waiting = set().union(*imported) - found
  assert {
    'jaxadv',
    'jaxadv.training.loop',
    'jaxadv.training.augment',
    'jaxadv.models.layers',
    'jaxadv.data.readers.records',
  } <= found
  files = (ROOT / 'jaxadv').rglob('*.py')
  assert found <= {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix(
      '.__init__'
    )
    for path in files
  }


def test_code_version_refuses_what_it_cannot_follow(code):
  with pytest.raises(UserError, match=r'pack\.nothing'):
    code('nothing')
  with pytest.raises(UserError, match='relatively'):
    code(a='from . import b')


@pytest.mark.parametrize('folder', ['jaxadv/training', 'experiments'])
def test_no_entry_of_the_cache_has_a_version_that_nobody_raises(folder):
  calls = [
    node
    for path in (ROOT / folder).rglob('*.py')
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
    if isinstance(node, ast.Call)
    and getattr(node.func, 'attr', None) == 'get_or_make'
  ]
  assert calls
  assert not any(isinstance(call.args[1], ast.Constant) for call in calls)


MAKER = """
import os, pathlib, sys, time
from absl import logging
from jaxadv import storage

logging.set_verbosity(logging.INFO)
logging.set_stderrthreshold(logging.INFO)

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
  start = lambda: subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  first = start()
  wait_for(log.exists)
  second = start()
  assert any('waiting for it' in line for line in second.stderr)
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
    with pytest.raises(UserError, match='another workdir'):
      storage.open_workdir(path, {})
