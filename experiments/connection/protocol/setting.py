"""The paper's setting, and ours where it is silent."""

from __future__ import annotations

import dataclasses
import os

from jaxadv.errors import UserError
from jaxadv.experiment import (
  VARIANTS,
  Options,
  check_choices,
  check_options,
  option,
)
from jaxadv.models import BACKBONES, build
from jaxadv.perturbations.noise import FILTERS
from jaxadv.sets.types import KINDS

KIND_NAMES = tuple(kind.name for kind in KINDS)


@dataclasses.dataclass(frozen=True)
class Config(Options):
  """Everything that decides a run of the connection paper.

  Networks are written `name:width`, a width of 1 being the published network.
  """

  dataset: str = option(
    'digits', 'TFDS name, folder of class folders, or .npz.'
  )
  train_split: str = option(
    '', 'Split for victim, reference and backbones; empty: see BUILD.md.'
  )
  heldout_split: str = option(
    '', 'Split for clean and attacked pictures; empty: see BUILD.md.'
  )
  image_size: int = option(32, 'Side of the pictures, in pixels.')
  num_pictures: int = option(
    240, 'Pictures of every kind, clean included; half train, half test.'
  )
  attacks: tuple[str, ...] = option(
    KIND_NAMES, f'Kinds of adversarial picture: {", ".join(KIND_NAMES)}.'
  )
  victim: str = option('vgg11:0.25', 'Network under attack, name:width.')
  victim_epochs: int = option(30, "Epochs of the victim's training.")
  reference: str = option(
    'vgg13:0.25', 'Network whose errors are the natural kinds, name:width.'
  )
  reference_pictures: int = option(
    40, 'Training pictures of the reference; 0 for all there are.'
  )
  reference_epochs: int = option(30, "Epochs of the reference's training.")
  backbones: tuple[str, ...] = option(
    ('vgg16:0.125', 'mobilenet:0.25'), 'Detector backbones, name:width.'
  )
  backbone_epochs: int = option(
    20, "Epochs of a backbone's training as a classifier."
  )
  weights: tuple[str, ...] = option(
    (), 'Start backbones from files instead, name:FILE.npz (Keras names).'
  )
  epsilon: float = option(16 / 255, 'Linf radius of FGSM and PGD, in (0, 1].')
  num_trials: int = option(100, 'Trials of the HSV attack.')
  ni_filter: str = option('gaussian', f'One of {", ".join(FILTERS)}, mixed.')
  detector_epochs: int = option(30, "Epochs of a detector's training.")
  num_seeds: int = option(1, 'Trainings of every detector.')
  split: str = option(
    'source',
    'source: a picture and all its versions on one side; per_class: every '
    'kind on its own, as in the paper, which leaks.',
  )

  def __post_init__(self):
    """Checks what can be checked before any work.

    Raises:
      UserError: Naming the option, its value and what is allowed.
    """
    check_options(self)
    check_choices('--variant', [self.variant], VARIANTS)
    check_choices('--attacks', self.attacks, KIND_NAMES)
    check_choices('--split', [self.split], ('source', 'per_class'))
    check_choices('--ni_filter', [self.ni_filter], (*FILTERS, 'mixed'))
    for name in ('attacks', 'backbones'):
      given = getattr(self, name)
      if not given:
        raise UserError(f'--{name} is empty; give at least one')
      if len(set(given)) < len(given):
        raise UserError(f'--{name} names one twice: {", ".join(given)}')
    for name in (
      'image_size',
      'victim_epochs',
      'reference_epochs',
      'backbone_epochs',
      'num_trials',
      'detector_epochs',
      'num_seeds',
    ):
      if getattr(self, name) < 1:
        raise UserError(
          f'--{name} is {getattr(self, name)}; it must be 1 or more'
        )
    if self.reference_pictures < 0:
      raise UserError(
        f'--reference_pictures is {self.reference_pictures}; it must be 0 '
        '(all) or more'
      )
    if self.num_pictures < 20:
      # A twentieth of them validates.
      raise UserError(
        f'--num_pictures is {self.num_pictures}; it must be 20 or more'
      )
    if not 0 < self.epsilon <= 1:
      raise UserError(
        f'--epsilon is {self.epsilon}; it must lie in (0, 1], in image units'
      )
    networks = [
      parse_network(text)
      for text in (self.victim, self.reference, *self.backbones)
    ]
    for name, width in networks:
      build(name, num_classes=2, width=width, image_size=self.image_size)
    names = [name for name, _ in networks]
    if names[1] in (names[0], *names[2:]):
      raise UserError(
        f'--reference is {names[1]}, which is also the victim or a backbone; '
        'natural kinds need another network'
      )
    for name, path in weight_files(self).items():
      if name not in names[2:]:
        raise UserError(
          f'--weights names {name!r}, which is not among --backbones '
          f'({", ".join(self.backbones)})'
        )
      if not os.path.isfile(path):
        raise UserError(
          f'--weights: there is no file {path}; give name:FILE.npz'
        )


def parse_network(text: str) -> tuple[str, float]:
  """Reads a network written as `name:width`; the width defaults to 1.

  Raises:
    UserError: If the name is unknown or the width is not a positive number.
  """
  name, _, width = text.partition(':')
  check_choices('network', [name], tuple(BACKBONES))
  try:
    value = float(width or 1)
  except ValueError:
    value = 0.0
  if not 0 < value <= 4:
    raise UserError(
      f'network {text!r} has no usable width; write name:width with a width '
      'in (0, 4], such as vgg16:0.25'
    )
  return name, value


def weight_file(config: Config, name: str) -> str | None:
  """Gives the file that `--weights` names for a backbone, if any."""
  return weight_files(config).get(name)


def weight_files(config: Config) -> dict[str, str]:
  """Reads `--weights`: {backbone name: file}."""
  files = {}
  for text in config.weights:
    name, colon, path = text.partition(':')
    if not colon:
      raise UserError(f'--weights has {text!r}; write name:FILE.npz')
    files[name] = path
  return files


def get_config(variant: str = 'quick') -> Config:
  """Gives the config of a variant.

  Args:
    variant: 'quick' (embedded digits, minutes on a CPU), 'small' (real data,
      written for CIFAR-10) or 'paper' (section 3 of the paper).

  Raises:
    UserError: If there is no such variant.
  """
  check_choices('--variant', [variant], VARIANTS)
  if variant == 'quick':
    return Config()
  if variant == 'small':
    return Config(
      variant='small',
      dataset='cifar10',
      num_pictures=1000,
      epsilon=8 / 255,
      num_trials=1000,
      num_seeds=3,
      backbones=('vgg16:0.25', 'mobilenet:0.25'),
      victim='vgg11:0.5',
      victim_epochs=7,
      reference_pictures=10_000,
      reference_epochs=4,
      backbone_epochs=4,
    )
  return Config(
    variant='paper',
    dataset='imagenet2012',
    image_size=224,
    num_pictures=3000,
    epsilon=8 / 255,
    num_trials=1000,
    num_seeds=3,
    victim='vgg16:1',
    victim_epochs=90,
    reference='vgg19:1',
    reference_pictures=0,
    reference_epochs=90,
    backbones=('vgg16:1', 'mobilenet:1'),
    backbone_epochs=90,
  )
