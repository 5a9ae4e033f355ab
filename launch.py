"""Runs an experiment by name: `python launch.py --exp=unseen_transfer`.

Flags only: an experiment is a file experiments/<paper>/<name>.py, and every
field of its config is a flag here. `--list` shows what there is, `--plan` what
a run would do.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import os
import pathlib
import re
import signal
import sys
import tempfile
import textwrap
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from absl import flags

from experiments.common.options import (
  VARIANTS,
  Options,
  cache_dir,
  data_dir,
  result_config,
)
from jaxadv import hosts
from jaxadv.errors import DataError, DoubtWarning, UserError, check_choices
from jaxadv.specs import read_number
from jaxadv.utils import keep_freed_memory

ROOT = pathlib.Path(__file__).resolve().parent
# What absl calls the types of flags.
KINDS = {'int': 'a whole number', 'float': 'a number', 'bool': 'true or false'}


class Terminated(KeyboardInterrupt):
  """The process was asked to end, not by its keyboard."""


def experiments() -> dict[str, str]:
  """Finds the experiments: {file stem: module name}.

  Those are the files that offer `get_config` and `run` under these names; to
  look imports nothing.
  """
  return {
    path.stem: f'experiments.{path.parent.name}.{path.stem}'
    for path in sorted(ROOT.glob('experiments/*/*.py'))
    if {'get_config', 'run'} <= _top_names(path)
  }


def _top_names(path: pathlib.Path) -> set[str]:
  """Lists the functions that a module defines or imports at its top."""
  names = set()
  for node in ast.parse(path.read_text(encoding='utf-8')).body:
    if isinstance(node, ast.FunctionDef):
      names.add(node.name)
    elif isinstance(node, ast.ImportFrom):
      names |= {alias.asname or alias.name for alias in node.names}
  return names


class NumberParser(flags.FloatParser):
  """Reads numbers, also as fractions: `0.03` or `8/255`."""

  def convert(self, argument: Any) -> float:
    """Gives the number; a `ValueError` says what is wrong."""
    return read_number(str(argument))


def define_common_flags(values: flags.FlagValues) -> None:
  """Defines the flags that every experiment has."""
  flags.DEFINE_string(
    'exp', None, 'Name of the experiment.', flag_values=values
  )
  flags.DEFINE_enum(
    'variant',
    'quick',
    VARIANTS,
    'quick: embedded data, minutes on a laptop; small: real data on a CPU or '
    "one GPU; paper: the paper's setting.",
    flag_values=values,
  )
  flags.DEFINE_string(
    'workdir',
    None,
    'Folder of the results; default runs/EXPERIMENT-VARIANT-DATASET, with a '
    'suffix if further options are given.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'plan',
    False,
    'Show cells, sizes and time; run nothing.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'list',
    False,
    'List experiments, attacks, backbones and data sets.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'distributed',
    False,
    'Join the hosts of this job in one run; SLURM, Open MPI, TPU pods and '
    'Kubernetes are recognised.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'coordinator',
    None,
    'HOST:PORT of the first host, where the cluster is not recognised.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'num_hosts', None, 'With --coordinator: how many.', flag_values=values
  )
  flags.DEFINE_integer(
    'host_index',
    None,
    'With --coordinator: which one this is, from 0.',
    flag_values=values,
  )
  define_config_flags(values, Options())


def _define_number(
  name: str, default: None, help: str, flag_values: flags.FlagValues
) -> None:
  flags.DEFINE(NumberParser(), name, default, help, flag_values)


def define_config_flags(values: flags.FlagValues, config: Any) -> None:
  """Defines one flag a field of the config; unset flags are None."""
  define = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: _define_number,
    str: flags.DEFINE_string,
    tuple: flags.DEFINE_list,
  }
  for field in dataclasses.fields(config):
    default = getattr(config, field.name)
    if field.name not in values:
      define[type(default)](
        field.name, None, field.metadata['help'], flag_values=values
      )


def parse(argv: Sequence[str]) -> tuple[flags.FlagValues, ModuleType | None]:
  """Parses the command line, in the light of the experiment it names.

  Raises:
    UserError: If a flag, its value or the experiment is unknown.
  """
  names = experiments()
  known = flags.FlagValues()
  define_common_flags(known)
  # The experiment's own flags are unknown in this first reading.
  _read(known, argv, known_only=True)
  module = None
  if known.exp is not None:
    check_choices('--exp', [known.exp], list(names))
    module = importlib.import_module(names[known.exp])
    define_config_flags(known, module.get_config(known.variant))
    known.unparse_flags()
  rest = _read(known, argv)
  if len(rest) > 1:
    raise UserError(
      f'unexpected argument {rest[1]!r}; flags are given as --name=value'
    )
  return known, module


def _read(
  known: flags.FlagValues, argv: Sequence[str], **options: bool
) -> list[str]:
  """Reads flags; gives what is none.

  Raises:
    UserError: If a flag or its value cannot be.
  """
  try:
    return known(argv, **options)
  except (flags.Error, ValueError) as error:  # Of --nochecks=3 the latter.
    raise UserError(
      f'{_complaint(str(error), known)} (python launch.py --help lists the '
      'flags; with --exp=NAME also those of the experiment)'
    ) from error


def _complaint(error: str, known: flags.FlagValues) -> str:
  """Gives an error of absl in one line, and in words if a value is wrong."""
  error = ' '.join(error.split())
  found = re.match(r'flag --(\w+)=(.*?): ', error)
  kind = found and KINDS.get(known[found[1]].flag_type())
  if not found or not kind:
    return error
  return f'--{found[1]} is {found[2]!r} but must be {kind}'


def configure(values: flags.FlagValues, module: ModuleType) -> Any:
  """Builds the config of the variant with the given flags put in.

  Raises:
    UserError: If a value cannot be.
  """
  dataset = values['dataset'].value if 'dataset' in values else None
  if dataset is not None and not dataset.strip():
    raise UserError(
      '--dataset is empty; give a name that --list shows, a folder or an .npz'
    )
  config = module.get_config(values.variant, dataset or '')
  given = {}
  for field in dataclasses.fields(config):
    value = values[field.name].value
    if value is not None:
      given[field.name] = tuple(value) if isinstance(value, list) else value
  return dataclasses.replace(config, **given)


def default_workdir(experiment: str, config: Any, module: ModuleType) -> str:
  """Names the folder of a run, so that other options get another folder.

  Of a path its last part stands in the name, and the whole in the suffix.
  """
  dataset = getattr(config, 'dataset', '')
  last = os.path.basename(os.path.normpath(dataset)).removesuffix('.npz')
  shown = re.sub(r'[^\w.+-]+', '_', last).strip('._') or 'data'
  name = '-'.join([experiment, config.variant, *([shown] if dataset else [])])
  plain = module.get_config(config.variant, dataset)
  chosen = result_config(config)
  if chosen != result_config(plain) or dataset not in ('', shown):
    text = json.dumps(chosen, sort_keys=True, default=str)
    name += '-' + hashlib.sha256(text.encode()).hexdigest()[:8]
  return os.path.join('runs', name)


def show_list(folder: str | None) -> None:
  """Prints the names that the flags take, a sentence each."""
  from jaxadv.attacks import ATTACKS
  from jaxadv.data.sources import available
  from jaxadv.models import BACKBONES

  for path in sorted(ROOT.glob('experiments/*/__init__.py')):
    found = {
      name: _summary(ROOT / f'{module.replace(".", "/")}.py')
      for name, module in experiments().items()
      if module.split('.')[1] == path.parent.name
    }
    if found:
      _print_names(f'--exp, {path.parent.name}: {_summary(path)}', found)
  _print_names(
    '--attacks, in verify; other experiments have their own names',
    {
      name: _first_line(getattr(factory, 'func', factory))  # Of a partial.
      for name, factory in ATTACKS.items()
    },
  )
  _print_names(
    '--model, --backbones: networks, NAME:WIDTH:SIZE',
    {
      name: f'Takes pictures of {network.min_size}x{network.min_size} pixels '
      f'or more; published with {network.image_size}x{network.image_size}.'
      for name, network in BACKBONES.items()
    },
  )
  sets = {
    name: 'Pictures of '
    + ', '.join(f'{split}: {count:,}' for split, count in sizes.items())
    + '.'
    for name, sizes in available(folder).items()
  }
  sets['digits'] += ' They come with scikit-learn.'
  sets['FOLDER'] = (
    'Class folders of PNG or JPEG files, or a folder of them for each split.'
  )
  sets['FILE.npz'] = 'Images (uint8, or floating in [0, 1]) and labels.'
  _print_names('--dataset, with the sizes of the splits', sets)
  if not folder:
    print('--data_dir=DIR shows the TFDS sets and folders that lie in DIR.')


def _print_names(title: str, sentences: Mapping[str, str]) -> None:
  """Prints names with sentences beside them, in 80 columns."""
  width = 2 + max(map(len, sentences)) + 2
  wrap = functools.partial(textwrap.fill, width=80)
  print(wrap(title))
  for name, sentence in sentences.items():
    start = f'  {name}'.ljust(width)
    print(wrap(sentence, initial_indent=start, subsequent_indent=' ' * width))
  print()


def _summary(path: pathlib.Path) -> str:
  """Gives the first paragraph of a module's docstring; imports nothing."""
  text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
  return ' '.join(text.partition('\n\n')[0].split())


def _first_line(documented: Any) -> str:
  return (inspect.getdoc(documented) or '').partition('\n')[0]


def use_compilation_cache() -> None:
  """Keeps compiled programs between runs, under the user's cache folder."""
  import jax

  if jax.config.jax_compilation_cache_dir is None:
    home = os.environ.get('XDG_CACHE_HOME', os.path.expanduser('~/.cache'))
    jax.config.update(
      'jax_compilation_cache_dir', os.path.join(home, 'jaxadv', 'compiled')
    )
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def check_hosts(values: flags.FlagValues) -> None:
  """Checks the flags that say which host this is.

  Raises:
    UserError: If some of them are missing or do not fit together.
  """
  given = [values.coordinator, values.num_hosts, values.host_index]
  if all(value is None for value in given):
    return
  if None in given:
    raise UserError(
      '--coordinator=HOST:PORT, --num_hosts=N and --host_index=i go together; '
      'where the cluster is recognised, --distributed does without them'
    )
  if not 0 <= values.host_index < values.num_hosts:
    raise UserError(
      f'--host_index is {values.host_index}; of {values.num_hosts} hosts it '
      f'must be one of 0 to {values.num_hosts - 1}'
    )


def run(module: ModuleType, config: Any, workdir: str) -> None:
  """Runs an experiment; of several hosts the first one writes and prints.

  All hosts take part in the work and share the cache. What the others would
  leave in the workdir is the same as what the first one leaves, and thrown
  away.
  """
  if hosts.is_first():
    module.run(config, workdir)
  else:
    shared = dataclasses.replace(config, cache_dir=cache_dir(config, workdir))
    with (
      tempfile.TemporaryDirectory() as scratch,
      open(os.devnull, 'w') as nowhere,
      contextlib.redirect_stdout(nowhere),
      contextlib.redirect_stderr(nowhere),
    ):
      module.run(shared, scratch)
  hosts.wait('end')


def joined() -> bool:
  """Tells whether this is one of several hosts."""
  return 'jax' in sys.modules and hosts.several()


def leave(code: int) -> int:
  """Gives the exit code of a failure; one of several hosts ends at once.

  Otherwise it would first wait for the others, and they for it.
  """
  if joined():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  return code


def main(argv: Sequence[str]) -> int:
  """Runs the command line; gives the exit code.

  0: done. 1: the run was stopped by broken data, a full disk or a lack of
  memory. 2: what was asked for cannot be. 130, 143: it was stopped by Ctrl-C
  or SIGTERM.
  """
  try:
    with plain_doubts():
      return command(argv)
  except UserError as error:
    print(f'launch.py: {error}', file=sys.stderr)
    return leave(2)
  except (DataError, OSError, MemoryError) as error:
    print(f'launch.py: stopped: {error}', file=sys.stderr)
    return leave(1)
  except KeyboardInterrupt as stop:
    print(
      'launch.py: stopped; finished work is kept, run the same command again',
      file=sys.stderr,
    )
    return leave(143 if isinstance(stop, Terminated) else 130)
  except Exception:
    if joined():
      traceback.print_exc()
      leave(1)
    raise


@contextlib.contextmanager
def plain_doubts() -> Iterator[None]:
  """Prints doubts as sentences, without the line of code that has them."""
  with warnings.catch_warnings():
    usual = warnings.showwarning

    def show(message, category, *where, **options):
      if issubclass(category, DoubtWarning):
        print(f'launch.py: warning: {message}', file=sys.stderr)
      else:
        usual(message, category, *where, **options)

    warnings.showwarning = show
    yield


def command(argv: Sequence[str]) -> int:
  """Does what a command line asks for; see `main` for the code."""
  if {'--help', '-help', '-h'} & set(argv):
    values = flags.FlagValues()
    define_common_flags(values)
    named = [a.partition('=')[2] for a in argv if a.startswith('--exp=')]
    if named and named[0] in experiments():
      module = importlib.import_module(experiments()[named[0]])
      define_config_flags(values, module.get_config('quick'))
    print(__doc__, values.get_help(), sep='\n')
    return 0
  values, module = parse(argv)
  check_hosts(values)
  if values.list:
    show_list(data_dir(values.data_dir))
    return 0
  if module is None:
    raise UserError(
      f'no experiment given; choose one: --exp={"|".join(experiments())}'
    )
  with errors_of_flags(values):
    return conduct(values, module)


def conduct(values: flags.FlagValues, module: ModuleType) -> int:
  """Plans or runs an experiment; gives the exit code."""
  config = configure(values, module)
  workdir = values.workdir or default_workdir(values.exp, config, module)
  use_compilation_cache()
  keep_freed_memory()
  if values.plan:
    print(module.plan(config, workdir))
  else:
    if values.distributed or values.coordinator:
      hosts.join(values.coordinator, values.num_hosts, values.host_index)
    run(module, config, workdir)
  return 0


@contextlib.contextmanager
def errors_of_flags(values: flags.FlagValues) -> Iterator[None]:
  """Writes the arguments that an error names as the flags that they are."""
  try:
    yield
  except (DataError, UserError) as error:
    raise type(error)(with_dashes(str(error), values)) from error


def with_dashes(message: str, names: Iterable[str]) -> str:
  """Puts dashes before the names of flags: 'batch_size=2' to '--batch_size=2'.

  Names of one word may be plain words; they are flags before ' is ', ' has ' or
  '=', after 'another', and as the subject of the sentence.
  """
  any_name = '|'.join(map(re.escape, names))
  long_name = '|'.join(re.escape(name) for name in names if '_' in name)
  named = (
    rf'(?:{long_name})\b',
    rf'(?:{any_name})(?==| is | has )',
    rf'(?<=another )(?:{any_name})\b',
    rf'^(?:{any_name})(?=: )',
  )
  return re.sub(rf"(?<![\w./'-])({'|'.join(named)})", r'--\1', message)


def terminate(signum: int, frame: Any) -> None:
  """Ends the process as Ctrl-C does, where it can be told why it ended."""
  raise Terminated


if __name__ == '__main__':
  signal.signal(signal.SIGTERM, terminate)
  sys.exit(main(sys.argv))
