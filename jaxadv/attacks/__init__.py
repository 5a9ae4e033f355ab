"""Attacks: factories of `Attack`, their registry, and what runs them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from jaxadv.attacks.combine import over, restarts, sequence
from jaxadv.attacks.deepfool import deepfool
from jaxadv.attacks.drive import Composite, drive
from jaxadv.attacks.evaluate import Evaluation, evaluate
from jaxadv.attacks.hsv import hsv
from jaxadv.attacks.noise_inherent import ni
from jaxadv.attacks.pgd import bim, fgsm, pgd
from jaxadv.errors import UserError
from jaxadv.norms import ball
from jaxadv.types import Attack, AttackResult, picture_keys

__all__ = [
  'ATTACKS',
  'Attack',
  'AttackResult',
  'Composite',
  'Evaluation',
  'bim',
  'deepfool',
  'drive',
  'evaluate',
  'fgsm',
  'hsv',
  'make',
  'ni',
  'over',
  'pgd',
  'picture_keys',
  'restarts',
  'sequence',
]


def _fgsm(epsilon=8 / 255, targeted=False) -> Attack:
  return fgsm(epsilon, targeted=targeted)


def _bim(
  epsilon=8 / 255, step_size=2 / 255, num_steps=10, norm='linf', targeted=False
) -> Attack:
  return bim(ball(norm, epsilon), step_size, num_steps, targeted=targeted)


def _pgd(
  epsilon=8 / 255,
  step_size=2 / 255,
  num_steps=10,
  norm='linf',
  random_start=True,
  targeted=False,
  early_stop=False,
) -> Attack:
  return pgd(
    ball(norm, epsilon),
    step_size,
    num_steps,
    random_start=random_start,
    targeted=targeted,
    early_stop=early_stop,
  )


ATTACKS: dict[str, Callable[..., Attack]] = {
  'fgsm': _fgsm,
  'bim': _bim,
  'pgd': _pgd,
  'deepfool': deepfool,
  'hsv': hsv,
  'ni_plus': functools.partial(ni, 1),
  'ni_minus': functools.partial(ni, -1),
}


def make(name: str, **hyper) -> Attack:
  """Builds an attack by name, with plain numbers as hyperparameters.

  Args:
    name: A key of `ATTACKS`.
    **hyper: What differs from the defaults, such as `epsilon=16 / 255`; PGD
      and BIM take `norm` ('linf' or 'l2') and `epsilon` in place of a ball.

  Returns:
    An `Attack`.

  Raises:
    UserError: If the name or a hyperparameter is unknown or out of range.
  """
  if name not in ATTACKS:
    raise UserError(
      f'attack is {name!r} but must be one of {", ".join(ATTACKS)}'
    )
  known = inspect.signature(ATTACKS[name]).parameters
  unknown = [key for key in hyper if key not in known]
  if unknown:
    raise UserError(
      f'attack {name} has no hyperparameter {", ".join(unknown)}; it has '
      f'{", ".join(known)}'
    )
  return ATTACKS[name](**hyper)
