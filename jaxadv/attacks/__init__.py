"""Attacks: factories of `Attack`, their registry, and what runs them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection

from jaxadv.attacks.adaptive import bpda, eot, evading, joint_classifier
from jaxadv.attacks.apgd import apgd, apgd_t
from jaxadv.attacks.auto import auto_attack
from jaxadv.attacks.carlini_wagner import carlini_wagner, carlini_wagner_linf
from jaxadv.attacks.checks import check
from jaxadv.attacks.combine import over, restarts, sequence
from jaxadv.attacks.ddn import ddn
from jaxadv.attacks.deepfool import deepfool
from jaxadv.attacks.drive import Composite, drive
from jaxadv.attacks.ead import ead
from jaxadv.attacks.evaluate import (
  Evaluation,
  evaluate,
  evaluate_over,
  robust_accuracy_curve,
)
from jaxadv.attacks.fab import fab, fab_t
from jaxadv.attacks.hsv import hsv
from jaxadv.attacks.noise_inherent import ni
from jaxadv.attacks.patch import (
  apply_patch,
  in_square,
  lavan,
  patch,
  train_patch,
)
from jaxadv.attacks.pgd import bim, fgsm, pgd
from jaxadv.attacks.square import square
from jaxadv.attacks.universal import apply_delta, universal_perturbation
from jaxadv.attacks.wrap import one_shot
from jaxadv.errors import UserError, near_names
from jaxadv.norms import ball
from jaxadv.types import Attack, AttackResult, picture_keys

__all__ = [
  'ATTACKS',
  'Attack',
  'AttackResult',
  'Composite',
  'Evaluation',
  'apgd',
  'apgd_t',
  'apply_delta',
  'apply_patch',
  'auto_attack',
  'bim',
  'bpda',
  'carlini_wagner',
  'carlini_wagner_linf',
  'check',
  'ddn',
  'deepfool',
  'drive',
  'ead',
  'eot',
  'evading',
  'evaluate',
  'evaluate_over',
  'fab',
  'fab_t',
  'fgsm',
  'hsv',
  'in_square',
  'joint_classifier',
  'lavan',
  'make',
  'ni',
  'one_shot',
  'over',
  'patch',
  'pgd',
  'picture_keys',
  'restarts',
  'robust_accuracy_curve',
  'sequence',
  'square',
  'train_patch',
  'universal_perturbation',
]


def _fgsm(epsilon=8 / 255, targeted=False) -> Attack:
  return fgsm(epsilon, targeted=targeted)


def _bim(
  epsilon=8 / 255, step_size=None, num_steps=10, norm='linf', targeted=False
) -> Attack:
  return bim(ball(norm, epsilon), step_size, num_steps, targeted=targeted)


def _pgd(
  epsilon=8 / 255,
  step_size=None,
  num_steps=10,
  norm='linf',
  random_start=True,
  targeted=False,
  early_stop=False,
  loss='ce',
  num_restarts=1,
) -> Attack | Composite:
  attack = pgd(
    ball(norm, epsilon),
    step_size,
    num_steps,
    random_start=random_start,
    targeted=targeted,
    early_stop=early_stop,
    loss=loss,
  )
  if num_restarts == 1:
    return attack
  if not random_start:
    raise UserError(
      f'num_restarts is {num_restarts} but without random_start every run is '
      'the same; allow random_start or leave num_restarts at 1'
    )
  return restarts(attack, num_restarts)


def _patch(
  epsilon=8 / 255,
  size=8,
  num_steps=100,
  step_size=None,
  targeted=False,
  early_stop=False,
) -> Attack:
  return patch(
    epsilon,
    size,
    num_steps,
    step_size,
    targeted=targeted,
    early_stop=early_stop,
  )


def _lavan(
  size=8, num_steps=100, step_size=None, targeted=False, early_stop=False
) -> Attack:
  return lavan(
    size, num_steps, step_size, targeted=targeted, early_stop=early_stop
  )


def _apgd(
  epsilon=8 / 255, num_steps=100, norm='linf', targeted=False, loss='ce'
) -> Attack:
  return apgd(
    ball(norm, epsilon),
    num_steps,
    targeted=targeted,
    loss=loss,
  )


def _apgd_t(
  epsilon=8 / 255, num_steps=100, norm='linf', num_targets=9
) -> Composite:
  return apgd_t(ball(norm, epsilon), num_steps, num_targets=num_targets)


def _square(
  epsilon=8 / 255, num_queries=5000, norm='linf', targeted=False
) -> Attack:
  return square(ball(norm, epsilon), num_queries, targeted=targeted)


def _auto_attack(
  epsilon=8 / 255, norm='linf', num_steps=100, num_queries=5000, num_targets=9
) -> Composite:
  return auto_attack(
    epsilon,
    norm,
    num_steps=num_steps,
    num_queries=num_queries,
    num_targets=num_targets,
  )


ATTACKS: dict[str, Callable[..., Attack | Composite]] = {
  'fgsm': _fgsm,
  'bim': _bim,
  'pgd': _pgd,
  'deepfool': deepfool,
  'patch': _patch,
  'lavan': _lavan,
  'hsv': hsv,
  'ni_plus': functools.partial(ni, 1),
  'ni_minus': functools.partial(ni, -1),
  'carlini_wagner': carlini_wagner,
  'carlini_wagner_linf': functools.partial(
    carlini_wagner_linf, epsilon=8 / 255
  ),
  'ddn': ddn,
  'ead': ead,
  'apgd': _apgd,
  'apgd_t': _apgd_t,
  'fab': fab,
  'fab_t': fab_t,
  'square': _square,
  'auto_attack': _auto_attack,
}


def make(name: str, **hyper) -> Attack | Composite:
  """Builds an attack by name, with plain numbers as hyperparameters.

  Args:
    name: A key of `ATTACKS`.
    **hyper: What differs from the defaults, such as `epsilon=16 / 255`; PGD
      and BIM take `norm` ('linf', 'l2' or 'l1') and `epsilon` in place of a
      ball, PGD also `loss` ('ce', 'margin' or 'dlr') and `num_restarts`. Steps
      whose length is not given follow the radius and their number.

  Returns:
    An `Attack`, or a `Composite` of several, which is used alike.

  Raises:
    UserError: If the name or a hyperparameter is unknown or out of range.
  """
  if name not in ATTACKS:
    raise UserError(
      f'attack is {name!r} but must be one of {", ".join(ATTACKS)}'
      f'{_meant(str(name), ATTACKS)}'
    )
  known = inspect.signature(ATTACKS[name]).parameters
  for key, value in hyper.items():
    if key not in known:
      raise UserError(
        f'attack {name} has no hyperparameter {key}; it has '
        f'{", ".join(known) or "none"}{_meant(key, known)}'
      )
    # Any word would count as yes.
    if isinstance(known[key].default, bool) and not isinstance(value, bool):
      raise UserError(f'{key} is {value!r} but must be True or False')
  return ATTACKS[name](**hyper)


def _meant(word: str, known: Collection[str]) -> str:
  """Asks for a name like the word given, if there is one."""
  near = [name for name in known if word in name] or near_names(word, known)
  return f'; did you mean {near[0]}?' if near else ''
