"""Files that survive a kill at any moment: atomic writes, cache, workdir.

Whatever is written here appears whole or not at all: it is first written
under a temporary name in the same folder and then renamed. The cache is
addressed by content: the name of an entry is a hash of what it was made
from, the code that made it included (`code_version`), so a changed
configuration or function is another entry and never a stale one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import functools
import hashlib
import importlib.machinery
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import CodeType
from typing import IO, Any

import numpy as np
from absl import logging

from jaxadv import hosts
from jaxadv.errors import DataError, UserError


def as_plain(value: Any) -> Any:
  """Turns a configuration into what JSON can hold, without ambiguity.

  Dataclasses and named tuples become dicts that carry the name of their
  class, arrays and bytes become a line with their hash, module-level
  functions and classes their dotted name.

  Args:
    value: None, bool, int, float, str, bytes, path, enum, NumPy or JAX array,
      JAX key, dataclass, named tuple, list, tuple, set or mapping of such.

  Returns:
    The same in dicts, lists, strings and numbers.

  Raises:
    TypeError: If the value holds something whose identity cannot be told from
      one process to the next (a lambda, an object without fields).
  """
  match value:
    case enum.Enum():
      return f'{type(value).__name__}.{value.name}'
    case None | bool() | int() | float() | str():
      return value
    case os.PathLike():
      return os.fspath(value)
    case bytes():
      return f'bytes {hashlib.sha256(value).hexdigest()}'
    case type():
      return f'{value.__module__}.{value.__qualname__}'
  if dataclasses.is_dataclass(value):
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {'class': type(value).__name__} | as_plain(fields)
  if isinstance(value, tuple) and hasattr(value, '_asdict'):
    return {'class': type(value).__name__} | as_plain(value._asdict())
  match value:
    case Mapping():
      if all(isinstance(key, str) for key in value):
        return {key: as_plain(item) for key, item in sorted(value.items())}
      pairs = [[as_plain(k), as_plain(v)] for k, v in value.items()]
      return sorted(pairs, key=json.dumps)
    case list() | tuple():
      return [as_plain(item) for item in value]
    case set() | frozenset():
      return sorted((as_plain(item) for item in value), key=json.dumps)
    case np.generic():
      return as_plain(value.item())
  if hasattr(value, 'dtype'):
    return _plain_array(value)
  if inspect.isroutine(value) and '<' not in value.__qualname__:
    return f'{value.__module__}.{value.__qualname__}'
  raise TypeError(
    f'cannot take a fingerprint of {value!r} ({type(value).__name__}): use '
    'numbers, strings, arrays, dataclasses and containers of them'
  )


def _plain_array(array: Any) -> str:
  """Gives dtype, shape and hash of the contents of an array in one line."""
  dtype = str(array.dtype)
  if dtype.startswith('key<'):
    import jax  # Whoever holds a key has JAX; reports read records without.

    array = jax.random.key_data(array)
  contents = np.ascontiguousarray(np.asarray(array))
  if contents.dtype == object:
    raise TypeError('cannot take a fingerprint of an array of objects')
  digest = hashlib.sha256(contents.view(np.uint8).data).hexdigest()
  return f'{dtype}{list(contents.shape)} {digest}'


def fingerprint(value: Any) -> str:
  """Hashes a configuration; equal in every process and Python version.

  Args:
    value: What `as_plain` accepts.

  Returns:
    32 hexadecimal digits.

  Raises:
    TypeError: As `as_plain`.
  """
  text = json.dumps(as_plain(value), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:32]


# What decides numbers beside our own code.
PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'numpy',
  'scipy',
  'scikit-learn',
  'pillow',
)
# It reads records and runs nothing, so that no entry depends on it.
_WITHOUT = 'jaxadv.reports'


@functools.cache
def code_version(*modules: str) -> str:
  """Hashes the code that entries of a cache are made by, as their version.

  That of the modules given, and of all that they import from their own
  packages and from `jaxadv`, wherever they do so, as bytecode without
  docstrings and asserts: to edit comments or docstrings changes nothing (to
  write a first docstring may), to edit anything else does. Code that is
  imported by a name in a string is not seen. The installed versions of the
  packages that compute count as well, and so does Python's, whose bytecode
  changes: a cache is no longer found after an upgrade.

  Args:
    *modules: Dotted names, such as `__name__`; works from a checkout, an
      installed wheel or a zip file. Their imports must not be relative.

  Returns:
    16 hexadecimal digits, computed once a process.

  Raises:
    UserError: If the source of a module cannot be found.
  """
  tops = frozenset({'jaxadv', *(n.partition('.')[0] for n in modules)})
  digests: dict[str, str] = {}
  waiting = set(modules)
  while waiting:
    name = waiting.pop()
    digests[name], imported = _code(name, tops)
    # A module is never imported without the package around it.
    imported |= {name.rpartition('.')[0] or name}
    waiting |= {
      n for n in imported - digests.keys() if not n.startswith(_WITHOUT)
    }
  packages = {name: metadata.version(name) for name in PACKAGES}
  return fingerprint([digests, packages])[:16]


@functools.cache
def _code(name: str, tops: frozenset[str]) -> tuple[str, frozenset[str]]:
  """Hashes a module's code; gives as well what it imports of packages."""
  spec = _spec(name)
  loader: Any = spec and spec.loader
  source = loader.get_source(name) if hasattr(loader, 'get_source') else None
  if spec and not loader:  # A folder of modules without code of its own.
    source = ''
  if source is None:
    raise UserError(
      f'the source of the module {name} cannot be found, so the cache could '
      'not tell when it changes; put the function into a module that can be '
      'imported'
    )
  if re.search(r'^\s*from\s+\.', source, re.MULTILINE):
    raise UserError(f'{name} imports relatively; write the packages out')
  code = compile(source, name, 'exec', dont_inherit=True, optimize=2)
  described, imported = [], set()
  for part in _parts(code):
    constants = [c for c in part.co_consts if not isinstance(c, CodeType)]
    # All but the places in the file; the order of sets changes by process.
    described.append(
      (
        part.co_name,
        part.co_flags,
        part.co_argcount,
        part.co_posonlyargcount,
        part.co_kwonlyargcount,
        part.co_varnames,
        part.co_freevars,
        part.co_cellvars,
        part.co_names,
        part.co_code,
        part.co_exceptiontable,
        [
          sorted(map(repr, c)) if isinstance(c, frozenset) else c
          for c in constants
        ],
      )
    )
    # `from a import b` leaves 'a' and ('b',), `import a.b` leaves 'a.b'.
    members = {
      m
      for c in constants
      if isinstance(c, tuple)
      for m in c
      if isinstance(m, str)
    }
    for other in part.co_names:
      if other.partition('.')[0] in tops and _spec(other) is not None:
        imported |= {other}
        imported |= {f'{other}.{m}' for m in members & _submodules(other)}
  digest = hashlib.sha256(repr(described).encode()).hexdigest()
  return digest, frozenset(imported)


def _parts(code: CodeType) -> Iterator[CodeType]:
  """Gives the code of a module and of all functions and classes in it."""
  yield code
  for constant in code.co_consts:
    if isinstance(constant, CodeType):
      yield from _parts(constant)


@functools.cache
def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
  """Finds a module without importing it or the packages around it."""
  above = name.rpartition('.')[0]
  if not above:
    return importlib.util.find_spec(name)
  package = _spec(above)
  folders = package and package.submodule_search_locations
  if not folders:
    return None
  return importlib.machinery.PathFinder.find_spec(name, folders)


@functools.cache
def _submodules(package: str) -> frozenset[str]:
  """Names the modules of a package; none of what is no package."""
  spec = _spec(package)
  folders = spec and spec.submodule_search_locations
  return frozenset(m.name for m in pkgutil.iter_modules(folders or ()))


@contextlib.contextmanager
def explain_full_disk(path: str | os.PathLike[str]) -> Iterator[None]:
  """Turns a full disk into an error that names the file being written.

  Args:
    path: What the block writes.

  Raises:
    DataError: If the device is full or the quota is used up.
  """
  try:
    yield
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise DataError(
      f'the disk is full: could not write {os.fspath(path)}; free some space '
      'and run the same command again, finished work is kept'
    ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
  """Opens a temporary file that takes the name `path` if the block succeeds.

  Args:
    path: The file; its folder is made if need be.

  Yields:
    A binary file.

  Raises:
    DataError: If the disk is full; names the file.
  """
  # Machines that share the folder may share the number of the process.
  name = f'.{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp'
  temporary = path.with_name(name)
  try:
    with explain_full_disk(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      with open(temporary, 'wb') as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes JSON, whole or not at all.

  Args:
    path: The file; its folder is made if need be.
    value: What `json.dumps` accepts; numbers must be finite.

  Raises:
    DataError: If a number is not finite or the disk is full; names the file.
  """
  path = Path(path)
  try:
    text = json.dumps(value, indent=2, allow_nan=False) + '\n'
  except ValueError as error:
    raise DataError(f'cannot write {path}: {error}') from error
  with replacing(path) as file:
    file.write(text.encode())


def read_json(path: str | os.PathLike[str]) -> Any:
  """Reads JSON.

  Args:
    path: The file.

  Returns:
    Its contents.

  Raises:
    DataError: If the file is absent or broken; names it.
  """
  try:
    return json.loads(Path(path).read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise DataError(f'cannot read {os.fspath(path)}: {error}') from error


def write_npz(path: str | os.PathLike[str], **arrays: Any) -> None:
  """Writes named arrays (.npz, uncompressed), whole or not at all.

  Args:
    path: The file; its folder is made if need be.
    **arrays: Arrays by name, of any dtype but object.

  Raises:
    DataError: If the disk is full; names the file.
  """
  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  with replacing(Path(path)) as file:
    np.savez(file, allow_pickle=False, **arrays)


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads all arrays of an .npz file.

  Args:
    path: The file.

  Returns:
    Arrays by name.

  Raises:
    DataError: If the file is absent or broken; names it.
  """
  try:
    with open(path, 'rb') as file:
      if not zipfile.is_zipfile(file):
        raise ValueError('it is no .npz file, or not a whole one')
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
    for name, array in arrays.items():
      # What is stored in another form comes as bytes.
      if not isinstance(array, np.ndarray):
        raise ValueError(f'it is a zip file of something else ({name})')
    return arrays
  except Exception as error:  # zipfile, zlib and NumPy fail in many ways.
    raise DataError(f'cannot read {os.fspath(path)}: {error}') from error


@dataclasses.dataclass(frozen=True)
class Cache:
  """Folders addressed by what they were made from; safe for many processes.

  Layout: `<root>/<unit>/<hash>/` is a whole entry; `<hash>.partial/` beside
  it holds what is being made; `<root>/.locks/` holds empty lock files, whose
  locks end with the process that holds them.

  Attributes:
    root: The folder of the cache; made on first use.
  """

  root: Path

  def __init__(self, root: str | os.PathLike[str]) -> None:
    object.__setattr__(self, 'root', Path(root))

  def entry(self, unit: str, version: int | str, config: Any) -> Path:
    """Gives the folder of an entry, whether it exists or not.

    Args:
      unit: What kind of thing it is ('victim', 'adversarial_set'); a name
        that can be a folder's.
      version: Of the code of the unit: `code_version(__name__)` changes with
        it; a number has to be raised by hand.
      config: All else that the result depends on (settings, random keys,
        fingerprints of data and weights); see `as_plain`.

    Returns:
      The path.
    """
    return self.root / unit / fingerprint([unit, version, config])

  def get_or_make(
    self,
    unit: str,
    version: int | str,
    config: Any,
    make: Callable[[Path, Path], None],
    *,
    alone: bool = False,
  ) -> Path:
    """Gives the folder of an entry and makes it first if it is not there.

    A second process that wants the same entry waits for the first and uses
    what it made. If the first one is killed, the second takes over. Hosts
    that were joined (`jaxadv.hosts`) make an entry together, in a root that
    all of them share.

    Args:
      unit: As in `entry`.
      version: As in `entry`.
      config: As in `entry`.
      make: `(folder, work)`; writes the entry into `folder`, which is empty
        (that of the first host is kept, if there are several),
        and keeps what it may resume from (checkpoints, finished chunks) in
        `work`, which survives a kill and is removed on success.
      alone: Whether the first of several hosts makes it and the others wait,
        for a `make` that is neither joint work nor free of side effects
        outside `folder`.

    Returns:
      The path of the whole entry; `entry.json` in it says what it is.

    Raises:
      UserError: If the cache cannot be written.
      DataError: If the disk is full.
    """
    path = self.entry(unit, version, config)
    partial = path.with_name(f'{path.name}.partial')
    folder, work = partial / 'new', partial / 'work'
    with contextlib.ExitStack() as stack:

      def begin() -> tuple[str, bool]:
        if not path.is_dir():
          stack.enter_context(self._locked(path.name))
          stack.enter_context(explain_full_disk(path))
        if path.is_dir():
          return path.name, False
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        work.mkdir(exist_ok=True)
        return path.name, True

      def end() -> None:
        description = {'unit': unit, 'version': version, 'config': config}
        write_json(folder / 'entry.json', as_plain(description))
        os.rename(folder, path)
        shutil.rmtree(partial, ignore_errors=True)

      name, to_make = hosts.on_first(begin)
      if name != path.name:
        raise DataError(
          f'the hosts want different entries of {unit}: start all of them '
          'with the same options, data and versions'
        )
      if to_make:
        # The first host alone writes the entry; the others take part in the
        # work, since its arrays may lie on the devices of all.
        own = folder
        if not hosts.is_first():
          own = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if alone:
          hosts.on_first(lambda: make(folder, work))
        else:
          make(own, work)
        hosts.on_first(end)
    return path

  @contextlib.contextmanager
  def _locked(self, name: str) -> Iterator[None]:
    """Holds the lock of an entry; the system frees it if the process dies."""
    from filelock import FileLock, Timeout

    path = self.root / '.locks' / name
    lock = FileLock(path)
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      try:
        lock.acquire(blocking=False)
      except Timeout:
        logging.info('another process is making %s; waiting for it', name)
        lock.acquire()
    except OSError as error:
      if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with explain_full_disk(path):
          raise
      raise UserError(
        f'cannot write to the cache {self.root} ({error.strerror}); pass '
        'another cache_dir'
      ) from error
    try:
      yield
    finally:
      lock.release()


def open_workdir(path: str | os.PathLike[str], config: Any) -> Path:
  """Makes a workdir, or opens one that belongs to the same configuration.

  Args:
    path: The folder.
    config: The configuration of the run, kept as `config.json`; see
      `as_plain`. Leave out what does not change results (a batch size), so
      that a run can be resumed with another one.

  Returns:
    The path.

  Raises:
    UserError: If the folder cannot be written, or belongs to a run with
      another configuration; names the fields that differ.
    DataError: If its `config.json` is broken or the disk is full.
  """
  path = Path(path)
  record = path / 'config.json'
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f'.writable.{os.getpid()}.{secrets.token_hex(4)}'
    probe.touch()
    probe.unlink()
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      with explain_full_disk(path):
        raise
    raise UserError(
      f'cannot write to the workdir {path} ({error.strerror}); pass another '
      'workdir'
    ) from error
  if not record.exists():
    write_json(record, as_plain(config))
    return path
  differing = differences(read_json(record), config)
  if differing:
    raise UserError(
      f'the workdir {path} belongs to another configuration ({differing}); '
      'pass another workdir'
    )
  return path


def differences(recorded: Any, config: Any) -> str:
  """Tells in which fields a recorded configuration differs from this one.

  Args:
    recorded: What `read_json` gives of the `as_plain` form written earlier.
    config: The configuration now; see `as_plain`.

  Returns:
    'name: value there, value now', joined by '; '; '' if there are none.
  """
  there, here = dict(_leaves(recorded)), dict(_leaves(as_plain(config)))
  return '; '.join(
    f'{name}: {there.get(name, "absent")} there, {here.get(name, "absent")} now'
    for name in sorted(there.keys() | here.keys())
    if there.get(name) != here.get(name)
  )


def _leaves(value: Any, name: str = '') -> Iterator[tuple[str, str]]:
  """Flattens nested dicts into (dotted name, JSON of the value) pairs."""
  if isinstance(value, dict):
    for key, item in value.items():
      yield from _leaves(item, f'{name}.{key}' if name else key)
  else:
    yield name or 'config', json.dumps(value)
