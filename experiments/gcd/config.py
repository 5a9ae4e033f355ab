"""The paper's setting, and ours where it is silent."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from experiments.common.options import (
  NETWORK,
  VARIANTS,
  Options,
  numbers,
  option,
)
from jaxadv.attacks import make, registry
from jaxadv.errors import UserError, check_choices
from jaxadv.models import PUBLISHED
from jaxadv.norms import usual_step
from jaxadv.specs import write as write_spec
from jaxadv.types import Attack

# Attacks as the paper names them: U untargeted, T targeted.
PAPER_NAME = {
  'fgsm': 'FGSM-U',
  'pgd': 'PGD-U',
  'pgd_t': 'PGD-T',
  'deepfool': 'DFool-U',
  'carlini_wagner': 'CW-U',
  'carlini_wagner_t': 'CW-T',
  'ddn': 'DDN-U',
  'ddn_t': 'DDN-T',
}
ATTACKS = tuple(PAPER_NAME)
# Those that look for the smallest change in L2, the subject of the paper.
MINIMAL = ('deepfool', 'carlini_wagner', 'carlini_wagner_t', 'ddn', 'ddn_t')
# Those that networks are trained with.
TRAINING_ATTACKS = ('pgd', 'ddn')
# Of PGD in the white box, as a share of its radius: with the paper's 0.01 of
# 0.3 it has not arrived after 400 steps.
WHITE_STEP = 0.1
# Of PixelDefend's radius, besides the radius of the attacks.
PURIFIED_RADII = (4, 8, 16, 32)
# Pictures of one channel, which are padded rather than enlarged.
GREY = ('digits', 'mnist')
# The paper names none of its 20 classes of ImageNet: every fiftieth here.
IMAGENET20 = tuple(range(0, 1000, 50))
PAPER_DATASET = {
  'mnist': 'MNIST',
  'cifar10': 'CIFAR-10',
  'imagenet20': 'ImageNet20',
}
_SPECS = (
  'NAME:KEY=VALUE:...; what is not given is as in the variant, and the step of '
  'PGD follows a radius or number of steps that is'
)


@dataclasses.dataclass(frozen=True)
class Config(Options):
  """Everything that decides a run of the gcd paper.

  All six experiments have the same options, so that victims, attacked
  pictures, detectors and repairs are found in the cache whichever experiment
  made them. Networks are written `name:width`, attacks `name:key=value`.
  """

  dataset: str = option(
    'digits', 'TFDS name, folder of class folders, or .npz.'
  )
  train_split: str = option(
    'train[:1200]', 'Split that victim and detectors learn from; empty: usual.'
  )
  heldout_split: str = option(
    'train[1200:]', 'Split of the test pictures; empty: the usual one.'
  )
  image_size: int = option(
    32, 'Side of the pictures, in pixels.', within='[1, inf)'
  )
  victim: str = option(
    'vgg11:0.125', 'Network under attack, name:width.', kind=NETWORK
  )
  victim_epochs: int = option(
    30, "Epochs of the victim's training.", within='[1, inf)'
  )
  weights: str = option(
    '',
    f'Published weights of the victim: {" or ".join(PUBLISHED)} (from '
    '$JAXADV_WEIGHTS_DIR, else downloaded where they can be), a folder or a '
    'file; empty: it is trained.',
  )
  attacks: tuple[str, ...] = option(
    ATTACKS, f'Attacks: {", ".join(ATTACKS)}, {_SPECS}.'
  )
  white_attacks: tuple[str, ...] = option(
    (),
    f'Those of --attacks as they are in the white box, {_SPECS}, of targeted '
    'attacks as of untargeted ones.',
  )
  training_attacks: tuple[str, ...] = option(
    (),
    'Attacks of adversarial training, '
    f'{" and ".join(TRAINING_ATTACKS)}, {_SPECS}.',
  )
  num_train: int = option(
    200, 'Pictures an attack that detectors learn from.', within='[20, inf)'
  )
  cw_train: int = option(
    0,
    'Carlini-Wagner, the dearest, attacks so many of them; 0 for all.',
    within='[0, inf)',
  )
  num_valid: int = option(
    60, 'Pictures an attack that detectors validate on.', within='[10, inf)'
  )
  num_test: int = option(
    150, 'Attacked test pictures an attack.', within='[20, inf)'
  )
  num_seeds: int = option(
    3,
    'Trainings of every detector and of f_rec; 1 gives no verdicts.',
    within='[1, inf)',
  )
  detector: str = option(
    'vgg11:0.125', "Network of the paper's detectors.", kind=NETWORK
  )
  detector_epochs: int = option(
    10, "Epochs of a detector's training.", within='[1, inf)'
  )
  detector_batch: int = option(
    32, "Pictures a step of a detector's training.", within='[1, inf)'
  )
  detector_rate: float = option(
    1e-3, "Learning rate of a detector's training.", within='(0, 1]'
  )
  tws_pictures: int = option(
    150, 'Test pictures that DET_TWS is tried on.', within='[1, inf)'
  )
  tws_tuned: int = option(
    20,
    'Validation pictures of each kind that settings of DET_TWS go by.',
    within='[1, inf)',
  )
  tws_radius: float = option(
    0.5, 'Linf radius of the steps of DET_TWS.', within='(0, 1]'
  )
  tws_cap: int = option(
    30, 'Largest number of untargeted steps of DET_TWS.', within='[1, inf)'
  )
  tws_cap_t: int = option(
    100, 'Largest number of targeted steps of DET_TWS.', within='[1, inf)'
  )
  pixelcnn_filters: int = option(8, 'Filters of PixelCNN++.', within='[1, inf)')
  pixelcnn_blocks: int = option(
    1, 'Residual blocks a stage of PixelCNN++.', within='[1, inf)'
  )
  pixelcnn_epochs: int = option(4, 'Epochs of PixelCNN++.', within='[1, inf)')
  pixelcnn_rate: float = option(
    1e-2, 'Learning rate of PixelCNN++.', within='(0, 1]'
  )
  pixelcnn_batch: int = option(
    8, 'Pictures a step of PixelCNN++.', within='[1, inf)'
  )
  pixelcnn_dropout: float = option(
    0.0, 'Rate of dropout of PixelCNN++.', within='[0, 1)'
  )
  pixelcnn_pictures: int = option(
    600,
    'Training pictures of PixelCNN++; 0 for all there are.',
    within='[0, inf)',
  )
  purified_pictures: int = option(
    100, 'Test pictures that are purified.', within='[1, inf)'
  )
  purified_radii: tuple[str, ...] = option(
    (),
    'Levels of 255 by which PixelDefend may change a pixel, the best on '
    'validation pictures is tested; empty: '
    f'{", ".join(map(str, PURIFIED_RADII))} and the radius of PGD.',
  )
  purified_valid: int = option(
    10,
    'Validation pictures of each kind that the radius is chosen on.',
    within='[1, inf)',
  )
  white_pictures: int = option(
    30, 'Test pictures attacked in the white box.', within='[1, inf)'
  )
  betas: tuple[str, ...] = option(
    ('10',),
    "Weights of the detector's loss that are searched.",
    within='[0, inf]',
  )
  num_draws: int = option(
    10, 'Draws of the random mask, to judge and to attack.', within='[1, inf)'
  )
  alphas: tuple[str, ...] = option(
    ('0.1', '0.3', '0.5', '0.7', '0.9'),
    'Masking rates of Figure 6.',
    within='[0, 1]',
  )
  repair_pictures: int = option(
    0,
    'Attacked pictures to fine-tune on; 0 for all that detectors learn.',
    within='[0, inf)',
  )
  repair_copies: int = option(
    5, 'Masked copies of a picture to fine-tune on.', within='[1, inf)'
  )
  repair_epochs: int = option(
    5,
    'Epochs of the fine-tuning; validation pictures pick one.',
    within='[1, inf)',
  )
  repair_rate: float = option(
    1e-3, 'Learning rate of the fine-tuning.', within='(0, 1]'
  )
  adversarial_growth: tuple[str, ...] = option(
    ('0.3', '0.6'),
    'Shares of its radius that PGD training begins with, each for a quarter of '
    'its epochs.',
    within='[0.01, 1]',
  )
  adversarial_epochs: int = option(
    8, 'Epochs of adversarial training at its whole radius.', within='[1, inf)'
  )
  adversarial_pictures: int = option(
    0,
    'Pictures of adversarial training; 0 for all there are.',
    within='[0, inf)',
  )

  def __post_init__(self) -> None:
    """Checks what can be checked before any work.

    Attacks are written out, with what was not given of them.

    Raises:
      UserError: Naming the option, its value and what is allowed.
    """
    super().__post_init__()
    for name, allowed in (
      ('attacks', ATTACKS),
      ('white_attacks', ATTACKS),
      ('training_attacks', TRAINING_ATTACKS),
    ):
      specs = _read_specs(f'--{name}', getattr(self, name), allowed)
      settings = {
        'attacks': self.attack_settings,
        'white_attacks': self.white_settings,
        'training_attacks': self.training_settings,
      }[name]
      written = tuple(_written(f'--{name}', n, settings) for n in specs)
      object.__setattr__(self, name, written)
    if not self.attacks:
      raise UserError('--attacks is empty; give at least one')
    radii = numbers('--purified_radii', self.radii, '[0, 255]')
    if any(radius % 1 for radius in radii):
      raise UserError(
        f'--purified_radii is {",".join(self.radii)!r}; give whole levels in '
        '[0, 255]'
      )
    for name, count in (
      ('tws_pictures', 'num_test'),
      ('purified_pictures', 'num_test'),
      ('white_pictures', 'num_test'),
      ('tws_tuned', 'num_valid'),
      ('purified_valid', 'num_valid'),
    ):
      if getattr(self, name) > getattr(self, count):
        raise UserError(
          f'--{name} is {getattr(self, name)}, but --{count} is '
          f'{getattr(self, count)}; give at most as many'
        )
    if self.white_pictures < self.num_seeds:
      raise UserError(
        f'--white_pictures is {self.white_pictures}; each of --num_seeds='
        f'{self.num_seeds} trainings defends pictures of its own, so give at '
        'least as many'
      )
    if (
      self.weights
      and not os.path.exists(self.weights)
      and self.weights not in PUBLISHED
    ):
      raise UserError(
        f'--weights has {self.weights!r}; give {", ".join(PUBLISHED)}, or a '
        'folder or file that exists'
      )
    if self.weights and self.dataset in GREY:
      raise UserError(
        f'--weights has {self.weights!r}, whose networks take three channels, '
        f'but {self.dataset} is read with one; leave it out or give a data set '
        'in colour'
      )

  @property
  def attack_names(self) -> tuple[str, ...]:
    """The names of the attacks, some of `ATTACKS`."""
    return tuple(spec.partition(':')[0] for spec in self.attacks)

  @property
  def epsilon(self) -> float:
    """The radius of PGD in image units."""
    return self.attack_settings('pgd')['epsilon']

  @property
  def white_epsilon(self) -> float:
    """The radius of PGD in the white box."""
    return self.white_settings('pgd')['epsilon']

  @property
  def radii(self) -> tuple[str, ...]:
    """The radii of PixelDefend in levels of 255."""
    own = {*PURIFIED_RADII, math.ceil(255 * self.epsilon - 1e-6)}
    return self.purified_radii or tuple(map(str, sorted(own)))

  def attack_settings(self, attack: str) -> dict[str, Any]:
    """Gives the hyperparameters of an attack (section 3 of the spec)."""
    usual = _usual(self.variant, self.dataset)[attack.removesuffix('_t')]
    return _with_given(attack, usual, self.attacks)

  def white_settings(self, attack: str) -> dict[str, Any]:
    """Gives those in the white box, where PGD takes longer steps, and more."""
    usual = self.attack_settings(attack)
    if 'step_size' in usual:
      usual['step_size'] = WHITE_STEP * usual['epsilon']
    usual |= _WHITE[self.variant].get(attack.removesuffix('_t'), {})
    return _with_given(
      attack, usual, self.white_attacks, lambda radius, _: WHITE_STEP * radius
    )

  def training_settings(self, attack: str) -> dict[str, Any]:
    """Gives those in adversarial training.

    Few steps of PGD are longer, to reach the border of the ball.
    """
    usual = self.attack_settings(attack)
    steps = min(_TRAINING[self.variant][attack], usual['num_steps'])
    if 'step_size' in usual and steps < usual['num_steps']:
      follows = usual_step(usual['epsilon'], steps)
      usual['step_size'] = max(usual['step_size'], follows)
    usual['num_steps'] = steps
    return _with_given(attack, usual, self.training_attacks)


@functools.cache
def _read_specs(
  flag: str, specs: tuple[str, ...], allowed: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
  """Reads attacks: {name: hyperparameters that are given}.

  Raises:
    UserError: If an attack or hyperparameter is unknown, or one comes twice.
  """
  names = [spec.partition(':')[0] for spec in specs]
  check_choices(flag, names, allowed)
  if len(set(names)) < len(names):
    raise UserError(f'{flag} names one twice: {", ".join(specs)}')
  found = {}
  for name, spec in zip(names, specs, strict=True):
    try:
      _, given = registry.read(spec)
    except UserError as error:
      raise UserError(f'{flag}: {error}') from error
    reserved = {'norm', 'targeted', 'num_restarts'} & {
      part.partition('=')[0] for part in spec.split(':')
    }
    if reserved:
      raise UserError(
        f'{flag} has {spec!r}, but {reserved.pop()} is part of what the paper '
        f'compares; leave it out ({name}_t is the targeted {name})'
      )
    found[name] = {k: v for k, v in given.items() if k != 'targeted'}
  return found


def _written(
  flag: str, attack: str, settings: Callable[[str], dict[str, Any]]
) -> str:
  """Writes an attack out, after building it, which computes nothing.

  Raises:
    UserError: If a hyperparameter is out of range.
  """
  try:
    own = settings(attack)
    build_attack(attack, own)
  except (TypeError, ValueError, ArithmeticError) as error:
    raise UserError(f'{flag} has {attack}: {error}') from error
  return write_spec(attack, own)


def _with_given(
  attack: str,
  usual: Mapping[str, Any],
  specs: tuple[str, ...],
  step: Callable[[float, int], Any] = usual_step,
) -> dict[str, Any]:
  """Puts what is given of an attack over what is usual.

  Given of the untargeted attack it holds of the targeted one, too, and the
  other way round. A step that is not given follows what is, by `step` of radius
  and number.
  """
  given = _read_specs('--attacks', specs, ATTACKS)
  base = attack.removesuffix('_t')
  names = [n for n in (attack, base, f'{base}_t') if given.get(n)]
  own = given[names[0]] if names else {}
  settings = {**usual, **own}
  changed = {
    k for k in ('epsilon', 'num_steps') if settings.get(k) != usual.get(k)
  }
  if 'step_size' in usual and 'step_size' not in own and changed:
    settings['step_size'] = step(settings['epsilon'], settings['num_steps'])
  return settings


def build_attack(attack: str, settings: Mapping[str, Any]) -> Attack:
  """Builds an attack of `ATTACKS` with its hyperparameters."""
  made = make(attack, **settings)
  assert isinstance(made, Attack)  # None of them is a sequence.
  return made


def get_config(variant: str = 'quick', dataset: str = '') -> Config:
  """Gives the config of a variant.

  Args:
    variant: 'quick' (embedded digits, minutes on a CPU), 'small' (MNIST or
      CIFAR-10 on a CPU or one GPU) or 'paper' (section 4 of the paper).
    dataset: The data set asked for; the variant's own if empty.

  Raises:
    UserError: If there is no such variant.
  """
  check_choices('--variant', [variant], VARIANTS)
  values: dict[str, Any] = {}
  if variant != 'quick':
    dataset = dataset or 'mnist'
    values = _SMALL if variant == 'small' else _PAPER
    if dataset not in GREY:
      values = values | (_COLOUR if variant == 'small' else _PAPER_COLOUR)
    if variant == 'paper' and dataset.startswith('imagenet'):
      values = values | _PAPER_IMAGENET
  if dataset and dataset != 'digits':
    # Their own splits, whatever they are called.
    values = {'train_split': '', 'heldout_split': ''} | values
    values = values | {'dataset': dataset}
  return Config(variant=variant, **values)


def _usual(variant: str, dataset: str) -> dict[str, dict[str, Any]]:
  """Gives the hyperparameters of attacks, without what --attacks says.

  PGD: the challenges of Madry et al. on MNIST and on CIFAR-10. The digits of
  the quick variant are attacked as MNIST is.
  """
  grey = dataset in GREY or variant == 'quick'
  epsilon = 0.3 if grey else 8 / 255
  step_size, num_steps = (0.01, 40) if grey else (2 / 255, 10)
  return {
    'fgsm': {'epsilon': epsilon},
    'pgd': {
      'epsilon': epsilon,
      'step_size': step_size,
      'num_steps': num_steps,
    },
    'deepfool': {'num_steps': 50, 'overshoot': 0.02, 'num_candidates': 10},
    'carlini_wagner': {
      **_CARLINI_WAGNER[variant],
      'learning_rate': 0.01,
      'abort_early': True,
    },
    'ddn': {'num_steps': 100},
  }


_CARLINI_WAGNER: dict[str, dict[str, Any]] = {
  'quick': dict(binary_search_steps=3, num_steps=100, initial_const=0.1),
  'small': dict(binary_search_steps=9, num_steps=300, initial_const=1e-2),
  'paper': dict(binary_search_steps=9, num_steps=1000, initial_const=1e-3),
}
# Where other than elsewhere. Few searches of Carlini-Wagner from a constant
# that is far too small would end too soon.
_WHITE: dict[str, dict[str, dict[str, Any]]] = {
  'quick': {
    'pgd': dict(num_steps=200),
    'ddn': dict(num_steps=320),
    'carlini_wagner': dict(
      binary_search_steps=3, num_steps=150, initial_const=10.0
    ),
  },
  'small': {
    'pgd': dict(num_steps=400),
    'ddn': dict(num_steps=320),
    'carlini_wagner': dict(
      binary_search_steps=3, num_steps=150, initial_const=10.0
    ),
  },
  'paper': {
    'pgd': dict(num_steps=400),
    'ddn': dict(num_steps=1000),
    'carlini_wagner': dict(
      binary_search_steps=9, num_steps=1000, initial_const=1e-3
    ),
  },
}
# Numbers of steps at most; those of the original in the paper's variant.
_TRAINING: dict[str, dict[str, int]] = {
  'quick': {'pgd': 7, 'ddn': 20},
  'small': {'pgd': 7, 'ddn': 20},
  'paper': {'pgd': 40, 'ddn': 100},
}
_SMALL: dict[str, Any] = dict(
  victim='vgg11:0.25',
  victim_epochs=2,
  detector='vgg11:0.25',
  detector_epochs=5,
  num_train=2_000,
  cw_train=400,
  num_valid=200,
  num_test=300,
  tws_pictures=200,
  tws_cap=100,
  tws_cap_t=200,
  pixelcnn_filters=16,
  pixelcnn_epochs=2,
  pixelcnn_pictures=4_000,
  purified_pictures=100,
  purified_valid=20,
  white_pictures=150,
  betas=('1', '10'),
  repair_pictures=1_000,
  repair_copies=2,
  adversarial_epochs=2,
  adversarial_pictures=15_000,
)
_COLOUR: dict[str, Any] = dict(victim_epochs=6, pixelcnn_pictures=1_500)
_PAPER: dict[str, Any] = dict(
  victim='vgg11',
  victim_epochs=30,
  detector='vgg11',
  detector_epochs=20,
  detector_batch=128,
  detector_rate=1e-4,
  num_train=5_000,
  num_valid=500,
  num_test=5_000,
  tws_pictures=1000,
  tws_tuned=100,
  tws_cap=1000,
  tws_cap_t=200,
  pixelcnn_filters=40,
  pixelcnn_blocks=5,
  pixelcnn_epochs=100,
  pixelcnn_rate=1e-3,
  pixelcnn_batch=32,
  pixelcnn_dropout=0.5,
  pixelcnn_pictures=0,
  purified_pictures=500,
  purified_valid=100,
  white_pictures=500,
  betas=('0.1', '1', '10'),
  num_draws=30,
  alphas=tuple(f'{tenth / 10:g}' for tenth in range(1, 10)),
  repair_epochs=10,
  adversarial_epochs=50,
)
_PAPER_COLOUR: dict[str, Any] = dict(
  victim_epochs=100, pixelcnn_filters=160, adversarial_epochs=30
)
_PAPER_IMAGENET: dict[str, Any] = dict(
  image_size=224,
  tws_radius=0.03,
  victim='resnet152',
  weights='imagenet',
  pixelcnn_pictures=5_000,
)
