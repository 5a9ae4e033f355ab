"""The table of all attacks, a row each; most tests run over it."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxadv import attacks, losses, norms
from jaxadv.types import Attack


class Case(NamedTuple):
  """An attack and what holds for it.

  `build` takes the radius of budget attacks, and nothing otherwise.
  """

  name: str
  build: Callable[..., Attack]
  norm: str | None = None
  kind: str = 'other'  # 'budget', 'minimal' or 'other'
  epsilon: float = 0.0  # Used on the small network.
  targeted: bool = False
  random: bool = False
  optimal: bool = False  # Finds the best point of a linear classifier,
  within: float = 1.021  # a minimal-norm attack up to this factor.


def _pgd(ball, **options):
  def build(epsilon):
    return attacks.pgd(ball(epsilon), epsilon / 4, 10, **options)

  return build


_PATCH = jnp.linspace(0, 1, 75).reshape(5, 5, 3)


def _never_flagged(images):
  return images[:, 0, 0, 0] - 2


CASES = [
  Case('fgsm', attacks.fgsm, 'linf', 'budget', 0.03, optimal=True),
  Case(
    'fgsm_targeted',
    lambda epsilon: attacks.fgsm(epsilon, targeted=True),
    'linf',
    'budget',
    0.05,
    targeted=True,
  ),
  Case(
    'bim',
    lambda epsilon: attacks.bim(norms.linf_ball(epsilon), epsilon / 4, 10),
    'linf',
    'budget',
    0.03,
    optimal=True,
  ),
  Case(
    'pgd_linf',
    _pgd(norms.linf_ball),
    'linf',
    'budget',
    0.03,
    random=True,
    optimal=True,
  ),
  Case(
    'pgd_l2',
    _pgd(norms.l2_ball),
    'l2',
    'budget',
    0.4,
    random=True,
    optimal=True,
  ),
  Case(
    'pgd_early',
    _pgd(norms.linf_ball, early_stop=True, loss=losses.margin),
    'linf',
    'budget',
    0.03,
    random=True,
    optimal=True,
  ),
  Case(
    'pgd_targeted',
    _pgd(norms.l2_ball, targeted=True, random_start=False, early_stop=True),
    'l2',
    'budget',
    0.8,
    targeted=True,
    optimal=True,
  ),
  Case(
    'pgd_l1',
    _pgd(functools.partial(norms.l1_ball, share=0.005)),
    'l1',
    'budget',
    2.0,
    random=True,
    optimal=True,
  ),
  Case('deepfool', attacks.deepfool, 'l2', 'minimal', optimal=True),
  Case(
    'deepfool_linf',
    lambda: attacks.deepfool(norm='linf'),
    'linf',
    'minimal',
    optimal=True,
  ),
  Case(
    'deepfool_targeted',
    lambda: attacks.deepfool(targeted=True),
    'l2',
    'minimal',
    targeted=True,
    optimal=True,
  ),
  Case(
    'carlini_wagner',
    lambda: attacks.carlini_wagner(
      30, binary_search_steps=4, initial_const=0.1
    ),
    'l2',
    'minimal',
  ),
  Case(
    'carlini_wagner_linf',
    lambda epsilon: attacks.carlini_wagner_linf(epsilon, 20),
    'linf',
    'budget',
    0.03,
    optimal=True,
  ),
  Case(
    'ddn',
    lambda: attacks.ddn(60, init_norm=0.3, gamma=0.1, levels=None),
    'l2',
    'minimal',
    optimal=True,
    within=1.25,
  ),
  Case(
    'ead',
    lambda: attacks.ead(
      50,
      binary_search_steps=6,
      initial_const=0.1,
      beta=0.02,
      decision_rule='l1',
    ),
    'l1',
    'minimal',
    optimal=True,
    within=1.25,
  ),
  Case(
    'patch',
    lambda epsilon: attacks.patch(epsilon, 5, 10, epsilon / 4),
    'linf',
    'budget',
    0.1,
    random=True,
  ),
  Case('lavan', lambda: attacks.lavan(3, 15), random=True),
  Case(
    'lavan_targeted',
    lambda: attacks.lavan(4, 15, targeted=True, early_stop=True, place=(1, 2)),
    targeted=True,
  ),
  Case('apply_patch', lambda: attacks.apply_patch(_PATCH), random=True),
  Case(
    'apply_delta', lambda: attacks.apply_delta(jnp.array([0.05, -0.05, 0.0]))
  ),
  Case(
    'evading',
    lambda epsilon: attacks.evading(
      attacks.pgd(norms.linf_ball(epsilon), epsilon / 4, 10), _never_flagged
    ),
    'linf',
    'budget',
    0.03,
    random=True,
    optimal=True,
  ),
  Case(
    'apgd',
    lambda epsilon: attacks.apgd(norms.linf_ball(epsilon), 10),
    'linf',
    'budget',
    0.03,
    random=True,
    optimal=True,
  ),
  Case(
    'fab_t',
    lambda: attacks.fab_t('l2', 15),
    'l2',
    'minimal',
    optimal=True,
    within=1.01,
  ),
  Case(
    'square',
    lambda epsilon: attacks.square(norms.l2_ball(epsilon), 30),
    'l2',
    'budget',
    0.8,
    random=True,
  ),
  Case('hsv', lambda: attacks.hsv(30), random=True),
  Case('ni_plus', lambda: attacks.ni(1)),
  Case('ni_minus', lambda: attacks.ni(-1, filter='mixed'), random=True),
]


def build(case: Case, epsilon=None) -> Attack:
  if case.kind == 'budget':
    return case.build(case.epsilon if epsilon is None else epsilon)
  return case.build()


def wanted(case: Case, labels, num_classes):
  """The labels that the attack is given: the true ones, or the next class."""
  return jnp.where(case.targeted, (labels + 1) % num_classes, labels)
