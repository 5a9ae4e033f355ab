"""Options of experiments: fields with ranges, which `launch.py` makes flags.

An experiment's config is a frozen dataclass, a child of `Options`, whose
fields are declared with `option`; what a field allows stands beside it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, TypeVar

from jaxadv import models
from jaxadv.errors import UserError, check_choices
from jaxadv.models.names import parse_network
from jaxadv.runs import shard_of
from jaxadv.specs import read_number

VARIANTS = ('quick', 'small', 'paper')
# Of an option: each value is `name:width:size` of a network.
NETWORK = 'network'

T = TypeVar('T')


def option(
  default: T,
  help: str,
  *,
  within: str = '',
  choices: Sequence[str] = (),
  kind: str = '',
  changes_result: bool = True,
) -> T:
  """Declares a field of a config that is also a flag.

  Args:
    default: Its value in the quick variant; its type is the flag's type, and
      a tuple becomes a comma-separated list.
    help: One line for `--help`.
    within: Which numbers are allowed, as '[1, inf)' or '(0, 1]'; of a list,
      each of them.
    choices: Which words are allowed; of a list, each of them once.
    kind: `NETWORK` for networks.
    changes_result: False for what may differ between two runs of the same
      results (folders, batch sizes of inference, shards).

  Returns:
    A dataclass field.
  """
  return dataclasses.field(
    default=default,
    metadata={
      'help': help,
      'within': within,
      'choices': tuple(choices),
      'kind': kind,
      'changes_result': changes_result,
    },
  )


@dataclasses.dataclass(frozen=True)
class Options:
  """Options that every experiment has."""

  variant: str = option(
    'quick', f'One of {", ".join(VARIANTS)}.', choices=VARIANTS
  )
  seed: int = option(
    0, 'Seed of everything random in the run.', within='[0, inf)'
  )
  data_dir: str = option(
    '',
    'Folder of prepared TFDS data sets; default $JAXADV_DATA_DIR.',
    changes_result=False,
  )
  cache_dir: str = option(
    '',
    'Folder shared by runs for victims, sets and detectors; default: a folder '
    'named cache beside the workdir.',
    changes_result=False,
  )
  batch_size: int = option(
    256,
    'Pictures per step of attacks and inference; does not change results.',
    within='[1, inf)',
    changes_result=False,
  )
  shard: str = option(
    '0/1',
    'i/n: compute only every n-th cell, from the i-th (0 <= i < n).',
    changes_result=False,
  )

  def __post_init__(self) -> None:
    """Checks what can be checked before any work.

    Raises:
      UserError: Naming the option, its value and what is allowed.
    """
    shard_of([], self.shard)
    for field in dataclasses.fields(self):
      _check(field, getattr(self, field.name), getattr(self, 'image_size', 0))


def _check(field: dataclasses.Field, value: Any, image_size: int) -> None:
  """Checks a value by what its field allows."""
  about, flag = field.metadata, f'--{field.name}'
  given = value if isinstance(value, tuple) else (value,)
  if about['choices'] or about['kind'] == NETWORK:
    if isinstance(value, tuple) and not value:
      raise UserError(f'{flag} is empty; give at least one')
    same = list(given)
    if about['choices']:
      check_choices(flag, given, about['choices'])
    else:
      same = [_check_network(text, image_size) for text in given]
    if len(set(same)) < len(same):
      raise UserError(f'{flag} names one twice: {", ".join(given)}')
  if about['within']:
    numbers(flag, value, about['within'])


def _check_network(text: str, image_size: int) -> Any:
  """Builds a network, which computes nothing; gives it as it is taken."""
  network = parse_network(text)
  network = network._replace(size=network.size_for(image_size))
  models.build(
    network.name,
    num_classes=2,
    width=network.width,
    image_size=network.size,
  )
  return network


def numbers(flag: str, value: Any, within: str) -> tuple[float, ...]:
  """Reads a number or a list of them, each within an interval.

  Args:
    flag: That they are given for.
    value: A number, or a tuple of text such as '0.1' or '8/255'.
    within: The interval, as '(0, 1]'.

  Raises:
    UserError: If one is no number or lies outside, or a list is empty.
  """
  left, right = within[0], within[-1]
  low, high = within[1:-1].split(', ')
  many = isinstance(value, tuple)
  try:
    found = tuple(map(read_number, value)) if many else (float(value),)
  except UserError:
    found = ()
  inside = all(
    (number > float(low) or (left == '[' and number == float(low)))
    and (number < float(high) or (right == ']' and number == float(high)))
    for number in found
  )
  if found and inside:
    return found
  if many:
    raise UserError(
      f'{flag} is {",".join(map(str, value))!r}; give numbers in {within}, '
      f'such as {flag}=0.1,0.5'
    )
  allowed = f'lie in {within}'
  if high == 'inf':
    allowed = f'be {low} or more' if left == '[' else f'be above {low}'
  raise UserError(f'{flag} is {value}; it must {allowed}')


def result_config(config: Options) -> dict[str, Any]:
  """Gives the options that decide the results, as plain values."""
  return {
    field.name: getattr(config, field.name)
    for field in dataclasses.fields(config)
    if field.metadata.get('changes_result', True)
  }


def data_dir(given: str | None) -> str | None:
  """Gives the folder of data sets: as given, else from the environment."""
  return given or os.environ.get('JAXADV_DATA_DIR') or None


def cache_dir(config: Options, workdir: str) -> str:
  """Gives the cache folder: the option, or `cache` beside the workdir."""
  return config.cache_dir or os.path.join(
    os.path.dirname(os.path.abspath(workdir)), 'cache'
  )
