"""Attacks by name, and as they are written: `pgd:epsilon=8/255:num_steps=40`.

What `make` takes is read from the signature of the factory, which is all that
an attack has to have to be in `ATTACKS`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jaxadv import specs
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
from jaxadv.errors import UserError
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
  specs.check_name('attack', name, ATTACKS)
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
    specs.check_key('attack', name, key, known)
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
  name, colon, rest = (
    spec.partition(':') if isinstance(spec, str) else (spec, '', '')
  )
  base = str(name).removesuffix('_t')
  if name in ATTACKS or 'targeted' not in _parameters(base):
    return specs.read(spec, 'attack', _kinds)
  name, given = specs.read(base + colon + rest, 'attack', _kinds)
  return name, {'targeted': True} | given


def _kinds(name: str) -> dict[str, specs.Kinds]:
  known = hyperparameters(name)
  return {key: specs.kinds_of(default) for key, default in known.items()}


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
  factory = ATTACKS.get(name)
  return inspect.signature(factory).parameters if factory else {}
