"""Attacks: factories of `Attack`, their registry, and what runs them."""

from __future__ import annotations

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
from jaxadv.attacks.registry import ATTACKS, hyperparameters, make, read
from jaxadv.attacks.square import square
from jaxadv.attacks.universal import apply_delta, universal_perturbation
from jaxadv.attacks.wrap import one_shot
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
  'hyperparameters',
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
  'read',
  'restarts',
  'robust_accuracy_curve',
  'sequence',
  'square',
  'train_patch',
  'universal_perturbation',
]
