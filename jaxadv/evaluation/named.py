"""Attacks and radii as a measurement of robustness takes them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import specs
from jaxadv.attacks import ATTACKS, Attack, Composite, drive, make, registry
from jaxadv.attacks.inputs import check_attack
from jaxadv.errors import UserError, check_choices
from jaxadv.storage import fingerprint
from jaxadv.types import (
  AttackResult,
  ClassifierLike,
  Images,
  Keys,
  Labels,
  Logits,
  picture_keys,
)

NORMS = ('linf', 'l2', 'l1')
# Radii to measure at if none are given: those the field reports. In L1 that
# is 12 for pictures of 32x32 pixels (Croce and Hein, Mind the Box, 2021).
USUAL_EPSILONS = {
  'linf': ('1/255', '2/255', '4/255', '8/255'),
  'l2': ('0.25', '0.5', '1', '2'),
  'l1': ('1.5', '3', '6', '12'),
}
# Attacks if none are given.
USUAL_ATTACKS = {
  'linf': ('fgsm', 'pgd', 'apgd', 'deepfool', 'ddn'),
  'l2': ('pgd', 'apgd', 'deepfool', 'ddn'),
  'l1': ('pgd:num_steps=100', 'ead'),
}
# Attacks that follow the gradient step by step and aim at the very norm; with
# enough steps robust accuracy can rest on them. The others take one step, stop
# at the first boundary, see no gradient, or measure another change.
STRONG = {
  'linf': (
    *('bim', 'pgd', 'apgd', 'apgd_t', 'auto_attack'),
    *('carlini_wagner_linf', 'fab', 'fab_t'),
  ),
  'l2': (
    *('bim', 'pgd', 'apgd', 'apgd_t', 'auto_attack'),
    *('carlini_wagner', 'ddn', 'fab', 'fab_t'),
  ),
  'l1': ('bim', 'pgd', 'ead'),
}
ENOUGH_STEPS = 20
# What an attack is given as where it has no name in the registry.
Own = Attack | Composite | Callable[[Any], Attack | Composite]
# These have flags of their own, or would make curves incomparable.
_RESERVED = ('epsilon', 'norm', 'targeted')


class NamedAttack(NamedTuple):
  """An attack of the registry with its hyperparameters, or one of the user's.

  Attributes:
    text: As the user wrote it, `name` or `name:hyperparameter=value:...`.
    name: In the registry; '' for one of the user's.
    hyper: Hyperparameters, without `epsilon`.
    has_budget: Whether it takes a radius to stay within; else it looks for
      the smallest change, or for any.
    own: The user's attack, or what makes it of a radius; None for one of the
      registry.
    program: Hash of what the user's attack computes; '' for one of the
      registry.
  """

  text: str
  name: str
  hyper: dict[str, Any]
  has_budget: bool
  own: Own | None = None
  program: str = ''

  @property
  def file_name(self) -> str:
    """Its name as that of a file, which another program does not share."""
    stem = re.sub(r'[^\w.]+', '-', self.text)
    return f'{stem}-{self.program[:8]}' if self.program else stem

  def is_strong(self, norm: str) -> bool:
    """Tells whether robust accuracy in a norm can rest on it alone.

    One of the user's is judged by its number of steps only.
    """
    if self.own is not None:
      built = self.build(1.0)
      return isinstance(built, Composite) or built.max_steps >= ENOUGH_STEPS
    if self.name not in STRONG[norm]:
      return False
    default = registry.hyperparameters(self.name)['num_steps']
    return self.hyper.get('num_steps', default) >= ENOUGH_STEPS

  def build(self, epsilon: float | jax.Array) -> Attack | Composite:
    """Builds the attack.

    Args:
      epsilon: Radius in image units, traced or not; one without a budget does
        not look at it.

    Raises:
      UserError: If a hyperparameter is out of range, or what the user gave
        makes no untargeted attack.
    """
    if self.own is not None:
      own: Any = self.own
      return _untargeted(own(epsilon) if self.has_budget else own)
    if not self.has_budget:
      return make(self.name, **self.hyper)
    return make(self.name, **{'epsilon': epsilon} | self.hyper)


def read_attack(text: str, norm: str) -> NamedAttack:
  """Reads an attack written as `name:hyperparameter=value:...`.

  A picture on which it has success rests, where the attack has that option.

  Args:
    text: What the user wrote.
    norm: One of `NORMS`, given to attacks that work in several.

  Raises:
    UserError: If there is no such attack or hyperparameter, or an attack with
      a budget knows another norm only.
  """
  name = text.partition(':')[0]
  check_choices('attacks', [name], tuple(ATTACKS))
  known = registry.hyperparameters(name)
  allowed = [key for key in known if key not in _RESERVED]
  try:
    _, given = registry.read(text)
  except UserError as error:
    raise UserError(f'attacks: {error}') from error
  for key in given:
    if key not in allowed:
      raise UserError(
        f'attacks has {text!r}, but {name} has no hyperparameter {key!r} to '
        f'be given as {name}:KEY=VALUE; it has {", ".join(allowed) or "none"}'
      )
  has_budget = registry.has_budget(name)
  if has_budget and 'norm' not in known and norm != 'linf':
    usual = ','.join(USUAL_ATTACKS[norm])
    raise UserError(
      f'attacks has {name}, whose budget is one of linf, but norm is '
      f'{norm}; leave it out, as in attacks={usual}'
    )
  options = {'norm': norm, 'early_stop': True}
  hyper = {key: value for key, value in options.items() if key in known} | given
  return NamedAttack(text, name, hyper, has_budget)


def own_attack(name: str, own: Own) -> NamedAttack:
  """Takes an attack of the user's under a name.

  Args:
    name: For tables and figures.
    own: An `Attack` or `Composite`, of which a success counts where its change
      is small enough; or a function `epsilon -> attack` for one with a budget,
      where epsilon is traced.

  Raises:
    UserError: If it is something else.
  """
  if not isinstance(name, str) or not name.strip():
    raise UserError(
      f'attacks has {name!r}, which is no name; give a name of the registry or '
      'a pair (name, attack)'
    )
  if not callable(own):
    raise UserError(
      f'the attack {name} is {_kind(own)} but must be an Attack, or '
      'a function from epsilon to one'
    )
  has_budget = not isinstance(own, (Attack, Composite))
  return NamedAttack(name, '', {}, has_budget, own)


def with_program(
  attack: NamedAttack, classifier: Any, shape: tuple[int, ...]
) -> NamedAttack:
  """Adds to an attack of the user's the hash of what it computes.

  Args:
    attack: Any; one of the registry is told by its name.
    classifier: A pytree.
    shape: (H, W, C) of the pictures.
  """
  if attack.own is None:
    return attack

  def program(
    epsilon: jax.Array,
    keys: Keys,
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
  ) -> AttackResult:
    return attack.build(epsilon)(keys, classifier, images, labels)

  lowered = jax.jit(program).lower(
    np.float32(0.5),
    picture_keys(jax.random.key(0), jnp.arange(2)),
    classifier,
    jnp.zeros((2, *shape)),
    jnp.zeros(2, jnp.int32),
  )
  return attack._replace(program=fingerprint(lowered.as_text()))


def _untargeted(built: Any) -> Attack | Composite:
  check_attack(built)
  if built.targeted:
    raise UserError(
      'it is targeted, but any other class counts here; leave targeted out'
    )
  return built


def read_epsilons(texts: Sequence[str], norm: str) -> dict[str, float]:
  """Reads radii, `8/255` or `0.5`, in image units.

  Args:
    texts: What the user wrote; those the field reports if there is nothing.
    norm: One of `NORMS`.

  Returns:
    The radii by what was written, in rising order.

  Raises:
    UserError: If one is no number, out of range, or given twice.
  """
  found = {
    text: _number('epsilons', text) for text in texts or USUAL_EPSILONS[norm]
  }
  most = 1 if norm == 'linf' else math.inf
  for text, value in found.items():
    if not 0 < value <= most or math.isinf(value):
      allowed = 'in (0, 1]' if norm == 'linf' else 'above 0'
      raise UserError(
        f'epsilons has {text}, but a radius in {norm} must be {allowed}; '
        'pixels lie in [0, 1], so eight grey levels are 8/255'
      )
  if len(set(found.values())) < len(texts):
    raise UserError(f'epsilons has one twice: {", ".join(texts)}')
  return dict(sorted(found.items(), key=lambda pair: pair[1]))


def write_epsilon(value: Any) -> str:
  """Writes a radius as `read_epsilons` reads it, for tables and figures.

  Args:
    value: A number, which is written in six digits where these are all of it
      in its dtype, else as grey levels, '8/255', else in full; text stays as
      it is.

  Raises:
    UserError: If it is neither.
  """
  if isinstance(value, str):
    return value
  try:
    number = float(value)
  except (TypeError, ValueError):
    raise UserError(
      f'epsilons has {value!r}, which is no number; give numbers or text such '
      "as '8/255'"
    ) from None
  kind = getattr(value, 'dtype', np.dtype(float)).type

  def same(other: float) -> bool:
    return kind(other) == value

  if not math.isfinite(number) or same(float(f'{number:.6g}')):
    return f'{number:.6g}'
  levels = round(255 * number)
  whole = same(levels / 255) or abs(255 * number - levels) < 1e-9
  return f'{levels}/255' if levels and whole else repr(number)


def given_attack(given: Any, norm: str) -> NamedAttack:
  """Reads an attack as a caller in Python gives it.

  Args:
    given: As `read_attack` takes it, or a pair as `own_attack` does.
    norm: One of `NORMS`.

  Raises:
    UserError: As these two, or if it is neither.
  """
  if isinstance(given, str):
    return read_attack(given, norm)
  if isinstance(given, (tuple, list)) and len(given) == 2:
    return own_attack(*given)
  raise UserError(
    f'attacks has {_kind(given)} without a name; give a name of the registry '
    "or a pair, such as ('mine', attack)"
  )


def _kind(given: Any) -> str:
  name = type(given).__name__
  return f'{"an" if name[0] in "AEIOUaeiou" else "a"} {name}'


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

  def logits(images: Images) -> Logits:
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
      raise UserError(f'attacks has {attack.text}: {error}') from error


def _number(flag: str, text: str) -> float:
  try:
    return specs.read_number(text)
  except UserError as error:
    raise UserError(f'{flag}: {error}') from error
