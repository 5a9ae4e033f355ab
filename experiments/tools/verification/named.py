"""Attacks and numbers as the command line writes them."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv.attacks import ATTACKS, Attack, Composite, drive, make
from jaxadv.errors import UserError
from jaxadv.experiment import check_choices

NORMS = ('linf', 'l2')
# Radii to measure at if none are given: those the field reports.
USUAL_EPSILONS = {
  'linf': ('1/255', '2/255', '4/255', '8/255'),
  'l2': ('0.25', '0.5', '1', '2'),
}
# These have flags of their own, or would make curves incomparable.
_RESERVED = ('epsilon', 'norm', 'targeted')
# Their step is this many radii for all steps together.
_WAY = 2.5
_STEPPING = ('bim', 'pgd')


class NamedAttack(NamedTuple):
  """An attack of the registry with its hyperparameters.

  Attributes:
    text: As the user wrote it, `name` or `name:hyperparameter=value:...`.
    name: In the registry.
    hyper: Hyperparameters, without `epsilon`.
    has_budget: Whether it takes a radius to stay within; else it looks for
      the smallest change, or for any.
  """

  text: str
  name: str
  hyper: dict[str, Any]
  has_budget: bool

  @property
  def file_name(self) -> str:
    """Its name as that of a file."""
    return re.sub(r'[^\w.]+', '-', self.text)

  def build(self, epsilon: float | jax.Array) -> Attack | Composite:
    """Builds the attack.

    Args:
      epsilon: Radius in image units, traced or not; one without a budget does
        not look at it.

    Raises:
      UserError: If a hyperparameter is out of range.
    """
    if not self.has_budget:
      return make(self.name, **self.hyper)
    hyper = {'epsilon': epsilon} | self.hyper
    if self.name in _STEPPING and 'step_size' not in hyper:
      known = inspect.signature(ATTACKS[self.name]).parameters
      num_steps = hyper.get('num_steps', known['num_steps'].default)
      # No steps at all are refused by the attack.
      hyper['step_size'] = _WAY * epsilon / max(num_steps, 1)
    return make(self.name, **hyper)


def read_attack(text: str, norm: str) -> NamedAttack:
  """Reads an attack written as `name:hyperparameter=value:...`.

  A picture on which it has success rests, where the attack has that option.

  Args:
    text: What the user wrote.
    norm: 'linf' or 'l2', given to attacks that work in several norms.

  Raises:
    UserError: If there is no such attack or hyperparameter, or an attack with
      a budget knows another norm only.
  """
  name, *parts = text.split(':')
  check_choices('--attacks', [name], tuple(ATTACKS))
  known = inspect.signature(ATTACKS[name]).parameters
  allowed = [key for key in known if key not in _RESERVED]
  given = {}
  for part in parts:
    key, equals, value = part.partition('=')
    if not equals or key not in allowed:
      raise UserError(
        f'--attacks has {text!r}, but {name} has no hyperparameter {key!r} to '
        f'be given as {name}:KEY=VALUE; it has {", ".join(allowed) or "none"}'
      )
    given[key] = _value(value)
  has_budget = 'epsilon' in known and known['epsilon'].default is not None
  if has_budget and 'norm' not in known and norm != 'linf':
    raise UserError(
      f'--attacks has {name}, whose budget is one of linf, but --norm is '
      f'{norm}; leave it out'
    )
  usual = {'norm': norm, 'early_stop': True}
  hyper = {key: value for key, value in usual.items() if key in known} | given
  return NamedAttack(text, name, hyper, has_budget)


def read_epsilons(texts: Sequence[str], norm: str) -> dict[str, float]:
  """Reads radii, `8/255` or `0.5`, in image units.

  Args:
    texts: What the user wrote; those the field reports if there is nothing.
    norm: 'linf' or 'l2'.

  Returns:
    The radii by what was written, in rising order.

  Raises:
    UserError: If one is no number, out of range, or given twice.
  """
  found = {
    text: _number('--epsilons', text) for text in texts or USUAL_EPSILONS[norm]
  }
  most = 1 if norm == 'linf' else math.inf
  for text, value in found.items():
    if not 0 < value <= most or math.isinf(value):
      allowed = 'in (0, 1]' if norm == 'linf' else 'above 0'
      raise UserError(
        f'--epsilons has {text}, but a radius in {norm} must be {allowed}; '
        'pixels lie in [0, 1], so eight grey levels are 8/255'
      )
  if len(set(found.values())) < len(texts):
    raise UserError(f'--epsilons has one twice: {", ".join(texts)}')
  return dict(sorted(found.items(), key=lambda pair: pair[1]))


def read_numbers(flag: str, texts: Sequence[str]) -> tuple[float, ...]:
  """Reads numbers, `0.485` or `127.5/255`.

  Raises:
    UserError: If one is no number.
  """
  return tuple(_number(flag, text) for text in texts)


def check_attacks(
  attacks: Sequence[NamedAttack],
  epsilons: Sequence[float],
  shape: tuple[int, ...],
  num_classes: int,
) -> None:
  """Traces every attack once, which computes nothing.

  Args:
    attacks: The attacks.
    epsilons: The radii.
    shape: (H, W, C) of the pictures.
    num_classes: Number of logits.

  Raises:
    UserError: If a hyperparameter does not fit the pictures or the classes;
      names the attack.
  """

  def logits(images):
    return jnp.outer(images.reshape(len(images), -1)[:, 0], slopes)

  slopes = jnp.arange(num_classes, dtype=jnp.float32)
  for attack in attacks:
    try:
      for epsilon in epsilons:
        built = attack.build(epsilon)
      jax.eval_shape(
        lambda built=built: drive(
          built,
          jax.random.split(jax.random.key(0), 2),
          logits,
          jnp.zeros((2, *shape)),
          jnp.zeros(2, jnp.int32),
        )
      )
    # Also words where numbers are wanted, on which arithmetic fails.
    except (TypeError, ValueError) as error:
      raise UserError(f'--attacks has {attack.text}: {error}') from error


def _number(flag: str, text: str) -> float:
  above, slash, below = text.partition('/')
  try:
    return float(above) / (float(below) if slash else 1)
  except (ValueError, ZeroDivisionError):
    raise UserError(
      f'{flag} has {text!r}, which is no number; write 8/255 or 0.03'
    ) from None


def _value(text: str) -> Any:
  """Reads the value of a hyperparameter: a number, yes or no, or a word."""
  words = {'true': True, 'false': False, 'none': None}
  if text.lower() in words:
    return words[text.lower()]
  for read in (int, lambda text: _number('--attacks', text)):
    try:
      return read(text)
    except ValueError:
      continue
  return text
