"""Things by name, as they are written: `pgd:epsilon=8/255:num_steps=40`.

The one grammar of attacks, optimizers and schedules. Who reads says which
names there are, and what can be set of each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from types import NoneType
from typing import Any

from jaxadv.errors import UserError, near_names

# The types that a value may have; of any type if there are none.
Kinds = tuple[type, ...]

_WORDS = {'true': True, 'false': False, 'none': None}
_KINDS = {
  bool: 'true or false',
  int: 'a whole number',
  float: 'a number, such as 0.01 or 2/255',
  str: 'a word',
}


def kinds_of(default: Any) -> Kinds:
  """Gives what a value may be in place of a default."""
  kind = type(default)
  if kind not in _KINDS:
    return ()
  return (kind,) if kind is bool else (kind, NoneType)


def read(
  spec: str, noun: str, known: Callable[[str], Mapping[str, Kinds]]
) -> tuple[str, dict[str, Any]]:
  """Reads `name:hyperparameter=value:...`.

  Args:
    spec: Values are numbers (also as fractions), words, true, false and none.
    noun: What is named, for errors: 'attack'.
    known: From a name to what can be set of it; raises `UserError` for an
      unknown one, see `check_name`.

  Returns:
    The name and the hyperparameters that are given.

  Raises:
    UserError: If the name or a hyperparameter is unknown, or a value is of
      another kind.
  """
  name = spec.partition(':')[0] if isinstance(spec, str) else spec
  kinds = known(name)
  given = {}
  for key, text in split(spec):
    check_key(noun, name, key, kinds)
    given[key] = _value(spec, key, text, kinds[key])
  return name, given


def split(spec: str) -> list[tuple[str, str]]:
  """Gives what is written behind a name, whatever it means.

  Args:
    spec: As of `read`.

  Returns:
    Pairs of a key and the text of its value.

  Raises:
    UserError: If a part is no pair.
  """
  name, *parts = spec.split(':')
  pairs: list[tuple[str, str]] = []
  for part in parts:
    key, equals, text = part.partition('=')
    if not equals:
      raise UserError(
        f'{spec!r} has {part!r}; hyperparameters are given as {name}:KEY=VALUE'
      )
    if key in dict(pairs):
      raise UserError(f'{spec!r} gives {key} twice')
    pairs.append((key, text))
  return pairs


def check_name(noun: str, name: str, known: Collection[str]) -> None:
  """Raises `UserError` with the valid names if this is none of them."""
  if name not in known:
    raise UserError(
      f'{noun} is {name!r} but must be one of {", ".join(known)}'
      f'{_meant(str(name), known)}'
    )


def check_key(noun: str, name: str, key: str, known: Collection[str]) -> None:
  """Raises `UserError` if there is no such hyperparameter of a name."""
  if key not in known:
    raise UserError(
      f'{noun} {name} has no hyperparameter {key}; it has '
      f'{", ".join(known) or "none"}{_meant(key, known)}'
    )


def write(name: str, hyper: Mapping[str, Any]) -> str:
  """Writes a name with hyperparameters as `read` reads it.

  Args:
    name: Of the attack or the like.
    hyper: Its hyperparameters: numbers, words, bools and None.
  """
  parts = [f'{key}={write_value(value)}' for key, value in hyper.items()]
  return ':'.join([name, *parts])


def write_value(value: Any) -> str:
  """Writes a value as `read` reads it, whole numbers of 255 as such."""
  if not isinstance(value, float):
    return str(value).lower()
  if float(f'{value:.6g}') == value:
    return f'{value:.6g}'
  levels = round(255 * value, 6)
  return f'{levels:g}/255' if levels / 255 == value else repr(value)


def read_number(text: str) -> float:
  """Reads a number, `0.03` or `8/255`.

  Raises:
    UserError: If it is none.
  """
  above, slash, below = text.partition('/')
  try:
    return float(above) / (float(below) if slash else 1)
  except (ValueError, ZeroDivisionError):
    raise UserError(f'{text!r} is no number; write 8/255 or 0.03') from None


def _value(spec: str, key: str, text: str, kinds: Kinds) -> Any:
  """Reads a value as one of some kinds.

  Raises:
    UserError: If it is of another kind.
  """
  value: Any = _WORDS.get(text.lower(), text)
  if isinstance(value, str):
    for reader in (int, read_number):
      with contextlib.suppress(ValueError):
        value = reader(text)
        break
  numeric = float in kinds and type(value) is int
  if not kinds or type(value) in kinds or numeric:
    return value
  raise UserError(f'{spec!r}: {key} is {text!r} but must be {_KINDS[kinds[0]]}')


def _meant(word: str, known: Collection[str]) -> str:
  """Asks for a name like the word given, if there is one."""
  near = [name for name in known if word in name] or near_names(word, known)
  return f'; did you mean {near[0]}?' if near else ''
