"""The attacks of other libraries, with the hyperparameters of ours.

`LIBRARIES[library](net, batch_size, device)` imports the library and gives a
table: attack -> function of our hyperparameters -> `run(images, labels)`, on
float32[B, C, H, W] and int64[B] of PyTorch. What a library does not let one
set stays at its default; `DIFFERENCES` says where that matters.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Run = Callable[[Any, Any], Any]
Table = dict[str, Callable[..., Run]]

# Names on the index of packages, and in `import`.
PACKAGES = {
  'foolbox': ('foolbox', 'foolbox'),
  'torchattacks': ('torchattacks', 'torchattacks'),
  'art': ('adversarial-robustness-toolbox', 'art'),
  'adv-lib': ('adv-lib', 'adv_lib'),
  'pyautoattack': ('pyautoattack', 'pyautoattack'),
}

_C_IS_ONE = 'no search for the constant: c = 1, as many steps in all'
_BLACK = 'gives black pictures back where it finds no success'
_WHOLE_BATCH = 'aborts when the whole batch stalls'
_STEP_SIZE = 'searches the step size, has no early abort'

DIFFERENCES = {
  'foolbox': {
    'ddn': 'no quantisation',
    'cw': _BLACK,
    'cw_early': f'{_WHOLE_BATCH}; {_BLACK}',
  },
  'torchattacks': {
    'cw': _C_IS_ONE,
    'cw_early': _C_IS_ONE,
    'auto_attack': 'takes 10 steps of APGD and FAB, not 100',
  },
  'art': {'cw': _STEP_SIZE, 'cw_early': _STEP_SIZE},
  'adv-lib': {
    'pgd': 'gives clean pictures back where it finds no success',
    'deepfool': 'looks at all classes',
    'cw_early': _WHOLE_BATCH,
  },
}


def _foolbox(net, batch_size: int, device: str) -> Table:
  import foolbox

  model = foolbox.PyTorchModel(net, bounds=(0, 1), device=device)

  def run(attack, **options) -> Run:
    def call(images, labels):
      criterion = foolbox.criteria.Misclassification(labels)
      return attack.run(model, images, criterion, **options)

    return call

  attacks = foolbox.attacks

  def ddn(num_steps, init_norm, gamma):
    return run(
      attacks.DDNAttack(init_epsilon=init_norm, steps=num_steps, gamma=gamma)
    )

  def cw(
    num_steps, binary_search_steps, initial_const, learning_rate, abort_early
  ):
    return run(
      attacks.L2CarliniWagnerAttack(
        binary_search_steps=binary_search_steps,
        steps=num_steps,
        stepsize=learning_rate,
        initial_const=initial_const,
        abort_early=abort_early,
      )
    )

  return {
    'fgsm': lambda epsilon: run(
      attacks.LinfFastGradientAttack(), epsilon=epsilon
    ),
    'pgd': lambda epsilon, step_size, num_steps: run(
      attacks.LinfPGD(abs_stepsize=step_size, steps=num_steps), epsilon=epsilon
    ),
    'deepfool': lambda num_steps: run(
      attacks.L2DeepFoolAttack(steps=num_steps, candidates=10, overshoot=0.02)
    ),
    'ddn': ddn,
    'ddn_float': ddn,
    'cw': cw,
    'cw_early': cw,
  }


def _torchattacks(net, batch_size: int, device: str) -> Table:
  import torchattacks

  def cw(num_steps, binary_search_steps, learning_rate):
    steps = num_steps * binary_search_steps
    return torchattacks.CW(net, c=1, steps=steps, lr=learning_rate)

  return {
    'fgsm': lambda epsilon: torchattacks.FGSM(net, eps=epsilon),
    'pgd': lambda epsilon, step_size, num_steps: torchattacks.PGD(
      net, eps=epsilon, alpha=step_size, steps=num_steps
    ),
    'deepfool': lambda num_steps: torchattacks.DeepFool(
      net, steps=num_steps, overshoot=0.02
    ),
    'cw': cw,
    'cw_early': cw,
    'auto_attack': lambda epsilon: _in_batches(
      torchattacks.AutoAttack(net, eps=epsilon, n_classes=10, seed=0),
      batch_size,
    ),
  }


def _art(net, batch_size: int, device: str) -> Table:
  import torch
  from art.attacks import evasion
  from art.estimators.classification import PyTorchClassifier

  def run(make, **options) -> Run:
    def call(images, labels):
      classifier = PyTorchClassifier(
        model=net,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=10,
        clip_values=(0, 1),
        device_type='cpu' if device == 'cpu' else 'gpu',
      )
      attack = make(classifier, batch_size=batch_size, **options)
      return attack.generate(images.cpu().numpy(), labels.cpu().numpy())

    return call

  def cw(num_steps, binary_search_steps, initial_const, learning_rate):
    return run(
      evasion.CarliniL2Method,
      learning_rate=learning_rate,
      binary_search_steps=binary_search_steps,
      max_iter=num_steps,
      initial_const=initial_const,
      verbose=False,
    )

  return {
    'fgsm': lambda epsilon: run(evasion.FastGradientMethod, eps=epsilon),
    'pgd': lambda epsilon, step_size, num_steps: run(
      evasion.ProjectedGradientDescent,
      eps=epsilon,
      eps_step=step_size,
      max_iter=num_steps,
      num_random_init=1,
      verbose=False,
    ),
    'deepfool': lambda num_steps: run(
      evasion.DeepFool,
      max_iter=num_steps,
      epsilon=0.02,
      nb_grads=10,
      verbose=False,
    ),
    'cw': cw,
    'cw_early': cw,
  }


def _adv_lib(net, batch_size: int, device: str) -> Table:
  attacks = _import_adv_lib()

  def run(attack, **options) -> Run:
    return lambda images, labels: attack(net, images, labels, **options)

  def cw(
    num_steps, binary_search_steps, initial_const, learning_rate, abort_early
  ):
    return run(
      attacks.carlini_wagner_l2,
      learning_rate=learning_rate,
      initial_const=initial_const,
      binary_search_steps=binary_search_steps,
      max_iterations=num_steps,
      abort_early=abort_early,
    )

  def ddn(num_steps, init_norm, gamma, levels=256):
    return run(
      attacks.ddn,
      steps=num_steps,
      init_norm=init_norm,
      γ=gamma,
      levels=levels,
    )

  return {
    'pgd': lambda epsilon, step_size, num_steps: run(
      attacks.pgd_linf,
      ε=epsilon,
      steps=num_steps,
      absolute_step_size=step_size,
    ),
    'deepfool': lambda num_steps: run(
      attacks.df, steps=num_steps, overshoot=0.02
    ),
    'ddn': ddn,
    'ddn_float': ddn,
    'cw': cw,
    'cw_early': cw,
  }


def _pyautoattack(net, batch_size: int, device: str) -> Table:
  import pyautoattack

  def auto_attack(epsilon) -> Run:
    attack = pyautoattack.AutoAttack(net, eps=epsilon, seed=0, device=device)
    return lambda images, labels: attack.run_standard_evaluation(
      images, labels, batch_size=batch_size
    )[0]

  return {'auto_attack': auto_attack}


LIBRARIES: dict[str, Callable[[Any, int, str], Table]] = {
  'foolbox': _foolbox,
  'torchattacks': _torchattacks,
  'art': _art,
  'adv-lib': _adv_lib,
  'pyautoattack': _pyautoattack,
}


def _in_batches(run: Run, batch_size: int) -> Run:
  import torch

  def call(images, labels):
    parts = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    return torch.cat([run(*part) for part in parts])

  return call


def _import_adv_lib():
  """Imports adv-lib's attacks also where two of its dependencies are absent.

  visdom draws curves and torchvision holds nets for a perceptual distance;
  no attack here uses either, but the package imports both.
  """
  absent = {}
  for name in ('visdom', 'torchvision'):
    try:
      importlib.import_module(name)
    except ImportError:
      absent[name] = types.ModuleType(name)
  if 'torchvision' in absent:
    vars(absent['torchvision'])['models'] = types.ModuleType('models')
  sys.modules.update(absent)
  try:
    return importlib.import_module('adv_lib.attacks')
  finally:
    for name in absent:
      del sys.modules[name]


@contextmanager
def stages(found: dict[str, float]) -> Iterator[None]:
  """Reads the robust accuracy after each part from pyautoattack's log.

  Args:
    found: Is filled with per cent by the name of the part; 'clean' first.
  """

  class Reader(logging.Handler):
    def emit(self, record):
      line = record.getMessage()
      clean = re.match(r'initial accuracy: ([\d.]+)%', line)
      part = re.match(r'robust accuracy after (\S+): ([\d.]+)%', line)
      if clean:
        found['clean'] = float(clean[1])
      elif part:
        found[part[1].lower()] = float(part[2])

  logger, reader = logging.getLogger('auto-attack'), Reader()
  level, propagate = logger.level, logger.propagate
  logger.addHandler(reader)
  logger.setLevel(logging.DEBUG)
  logger.propagate = False
  try:
    yield
  finally:
    logger.removeHandler(reader)
    logger.setLevel(level)
    logger.propagate = propagate
