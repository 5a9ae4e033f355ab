"""Attacks by name, and as they are written: `pgd:epsilon=8/255:num_steps=40`.

What `make` takes is read from the signature of the factory, which is all that
an attack has to have to be in `ATTACKS`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from jaxadv.attacks.apgd import apgd, apgd_t
from jaxadv.attacks.auto import auto_attack
from jaxadv.attacks.carlini_wagner import carlini_wagner, carlini_wagner_linf
from jaxadv.attacks.combine import restarts
from jaxadv.attacks.ddn import ddn
from jaxadv.attacks.deepfool import deepfool
from jaxadv.attacks.drive import Composite
from jaxadv.attacks.ead import ead
from jaxadv.attacks.fab import fab, fab_t
from jaxadv.attacks.hsv import hsv
from jaxadv.attacks.noise_inherent import ni
from jaxadv.attacks.patch import lavan, patch
from jaxadv.attacks.pgd import bim, fgsm, pgd
from jaxadv.attacks.square import square
from jaxadv.errors import UserError, near_names
from jaxadv.norms import ball
from jaxadv.types import Attack

ATTACKS: dict[str, Callable[..., Attack | Composite]] = {
  'fgsm': fgsm,
  'bim': bim,
  'pgd': pgd,
  'deepfool': deepfool,
  'patch': patch,
  'lavan': lavan,
  'hsv': hsv,
  'ni_plus': functools.partial(ni, 1),
  'ni_minus': functools.partial(ni, -1),
  'carlini_wagner': carlini_wagner,
  'carlini_wagner_linf': carlini_wagner_linf,
  'ddn': ddn,
  'ead': ead,
  'apgd': apgd,
  'apgd_t': apgd_t,
  'fab': fab,
  'fab_t': fab_t,
  'square': square,
  'auto_attack': auto_attack,
}
# The radius of an attack that is asked for without one.
EPSILON = 8 / 255
_WORDS = {'true': True, 'false': False, 'none': None}
_KINDS = {
  bool: 'true or false',
  int: 'a whole number',
  float: 'a number, such as 0.01 or 2/255',
  str: 'a word',
}


def hyperparameters(name: str) -> dict[str, Any]:
  """Gives what can be set of an attack, and the defaults.

  Those of its factory, with `epsilon` and `norm` in place of a ball, and
  `num_restarts` of PGD. Places in a picture, which are pairs, cannot be.

  Args:
    name: A key of `ATTACKS`.

  Returns:
    {hyperparameter: default}, of numbers, words, bools and None.

  Raises:
    UserError: If there is no such attack.
  """
  if name not in ATTACKS:
    raise UserError(
      f'attack is {name!r} but must be one of {", ".join(ATTACKS)}'
      f'{_meant(str(name), ATTACKS)}'
    )
  parameters = _parameters(name)
  found: dict[str, Any] = {'norm': 'linf'} if 'ball' in parameters else {}
  for key, parameter in parameters.items():
    if key in ('ball', 'epsilon'):
      absent = parameter.default is inspect.Parameter.empty
      found = {'epsilon': EPSILON if absent else parameter.default} | found
    elif 'tuple' not in str(parameter.annotation):
      found[key] = parameter.default
  if name == 'pgd':
    found['num_restarts'] = 1
  return found


def has_budget(name: str) -> bool:
  """Tells whether an attack stays within a radius, by its name in `ATTACKS`."""
  return hyperparameters(name).get('epsilon') is not None


def make(spec: str, **hyper: Any) -> Attack | Composite:
  """Builds an attack by name, with plain numbers as hyperparameters.

  Args:
    spec: A key of `ATTACKS`, perhaps with hyperparameters as `read` takes
      them: 'pgd:epsilon=8/255:num_steps=40:norm=l2'.
    **hyper: More of them, which count before those of `spec`; they may be
      traced. Steps whose length is not given follow the radius and their
      number.

  Returns:
    An `Attack`, or a `Composite` of several, which is used alike.

  Raises:
    UserError: If the name or a hyperparameter is unknown or out of range.

  Example:
    >>> attack = make('pgd:num_steps=40', epsilon=4 / 255)
  """
  name, given = read(spec)
  known = hyperparameters(name)
  for key, value in hyper.items():
    _check_known(name, key, known)
    # Any word would count as yes.
    if isinstance(known[key], bool) and not isinstance(value, bool):
      raise UserError(f'{key} is {value!r} but must be True or False')
  given |= hyper
  factory, parameters = ATTACKS[name], _parameters(name)
  if 'ball' in parameters:
    norm = given.pop('norm', known['norm'])
    given['ball'] = ball(norm, given.pop('epsilon', known['epsilon']))
  elif 'epsilon' in parameters:
    given.setdefault('epsilon', known['epsilon'])
  num_restarts = given.pop('num_restarts', 1)
  attack = factory(**given)
  if num_restarts == 1:
    return attack
  if not given.get('random_start', True):
    raise UserError(
      f'num_restarts is {num_restarts} but without random_start every run is '
      'the same; allow random_start or leave num_restarts at 1'
    )
  return restarts(attack, num_restarts)


def read(spec: str) -> tuple[str, dict[str, Any]]:
  """Reads an attack as it is written: `name:hyperparameter=value:...`.

  Args:
    spec: Such as 'pgd:epsilon=8/255:random_start=false'. Values are numbers
      (also as fractions), words, true, false and none.

  Returns:
    The name and the hyperparameters that are given. 'pgd_t' is read as
    'pgd:targeted=true', and so for every attack that can be targeted.

  Raises:
    UserError: If the attack or a hyperparameter is unknown, or a value is of
      another kind than the default.
  """
  name, *parts = spec.split(':') if isinstance(spec, str) else [spec]
  given: dict[str, Any] = {}
  base = str(name).removesuffix('_t')
  if name not in ATTACKS and 'targeted' in _parameters(base):
    name, given = base, {'targeted': True}
  known = hyperparameters(name)
  for part in parts:
    key, equals, text = part.partition('=')
    if not equals:
      raise UserError(
        f'{spec!r} has {part!r}; hyperparameters are given as {name}:KEY=VALUE'
      )
    _check_known(name, key, known)
    given[key] = _value(spec, key, text, known[key])
  return name, given


def write(name: str, hyper: Mapping[str, Any]) -> str:
  """Writes an attack as `read` reads it.

  Args:
    name: Of the attack.
    hyper: Its hyperparameters: numbers, words, bools and None.
  """
  parts = [f'{key}={write_number(value)}' for key, value in hyper.items()]
  return ':'.join([name, *parts])


def write_number(value: Any) -> str:
  """Writes a value as `read_number` reads it, whole numbers of 255 as such."""
  if not isinstance(value, float):
    return str(value).lower()
  if float(f'{value:.6g}') == value:
    return f'{value:.6g}'
  levels = round(255 * value, 6)
  return f'{levels:g}/255' if levels / 255 == value else repr(value)


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
  factory = ATTACKS.get(name)
  return inspect.signature(factory).parameters if factory else {}


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


def _value(spec: str, key: str, text: str, default: Any) -> Any:
  """Reads a value as what its default is.

  Raises:
    UserError: If it is of another kind.
  """
  value: Any = _WORDS.get(text.lower(), text)
  if isinstance(value, str):
    for reader in (int, read_number):
      with contextlib.suppress(ValueError):
        value = reader(text)
        break
  for kind, wanted in _KINDS.items():
    if type(default) is kind:
      numeric = kind is float and type(value) is int
      nothing = kind is not bool and value is None
      if nothing or type(value) is kind or numeric:
        return value
      raise UserError(f'{spec!r}: {key} is {text!r} but must be {wanted}')
  return value


def _check_known(name: str, key: str, known: Mapping[str, Any]) -> None:
  if key not in known:
    raise UserError(
      f'attack {name} has no hyperparameter {key}; it has '
      f'{", ".join(known) or "none"}{_meant(key, known)}'
    )


def _meant(word: str, known: Collection[str]) -> str:
  """Asks for a name like the word given, if there is one."""
  near = [name for name in known if word in name] or near_names(word, known)
  return f'; did you mean {near[0]}?' if near else ''
