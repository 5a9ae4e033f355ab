"""The paper's setting, and ours where it is silent."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from jaxadv.errors import UserError
from jaxadv.experiment import (
  VARIANTS,
  Options,
  check_choices,
  check_options,
  option,
)
from jaxadv.models import BACKBONES, PUBLISHED, build
from jaxadv.models.names import NetworkName, parse_network
from jaxadv.perturbations.noise import FILTERS
from jaxadv.sets.types import KINDS

KIND_NAMES = tuple(kind.name for kind in KINDS)
FEATURE_DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Config(Options):
  """Everything that decides a run of the connection paper.

  Networks are written `name:width:size`. A width of 1 is the published network
  and the default. The size is the side of the pictures that the network takes,
  to which it resizes those of the run; by default they have it already, or are
  enlarged to the smallest that the network can take.
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
    200, 'Pictures of every kind, clean included; half train, half test.'
  )
  attacks: tuple[str, ...] = option(
    KIND_NAMES, f'Kinds of adversarial picture: {", ".join(KIND_NAMES)}.'
  )
  victim: str = option('vgg11:0.25', 'Network under attack, name:width:size.')
  victim_epochs: int = option(30, "Epochs of the victim's training.")
  reference: tuple[str, ...] = option(
    ('vgg13:0.25',),
    'Networks whose errors are the natural kinds: those of the first, then of '
    'the next.',
  )
  reference_pictures: int = option(
    40, 'Training pictures of the reference; 0 for all there are.'
  )
  reference_epochs: int = option(30, "Epochs of the reference's training.")
  backbones: tuple[str, ...] = option(
    ('vgg16:0.125', 'mobilenet:0.25'), 'Detector backbones, name:width:size.'
  )
  backbone_pictures: int = option(
    0, 'Training pictures of the backbones; 0 for all there are.'
  )
  backbone_epochs: int = option(
    20, "Epochs of a backbone's training as a classifier."
  )
  backbone_batch: int = option(
    0, "Pictures a step of a backbone's training; 0 for the network's own."
  )
  weights: tuple[str, ...] = option(
    (),
    f'Published weights in place of training: {" or ".join(PUBLISHED)} (from '
    '$JAXADV_WEIGHTS_DIR, else downloaded where they can be), a folder, or '
    'NETWORK=FILE for one network.',
  )
  heldout_pictures: int = option(
    0, 'Use so many held-out pictures, drawn at random; 0 for all.'
  )
  natural_dataset: str = option(
    '',
    'Set of natural adversarial pictures, such as imagenet_a; empty: errors of '
    'the reference.',
  )
  natural_plus_dataset: str = option(
    '',
    'Folder of their crops, class by class, such as ImageNet-A-Plus; empty: '
    'Grad-CAM crops.',
  )
  epsilon: float = option(16 / 255, 'Linf radius of FGSM and PGD, in (0, 1].')
  num_trials: int = option(100, 'Trials of the HSV attack.')
  ni_filter: str = option('gaussian', f'One of {", ".join(FILTERS)}, mixed.')
  detector_epochs: int = option(15, "Epochs of a detector's training.")
  num_seeds: int = option(
    3, 'Trainings of every backbone with its detectors; 1 gives no verdicts.'
  )
  split: str = option(
    'source',
    'source: a picture and all its versions on one side; per_class: every '
    'kind on its own, as in the paper, which leaks.',
  )
  feature_dtype: str = option(
    'float32', 'float32 or bfloat16: of the features of the frozen part.'
  )
  feature_memory: float = option(
    8.0,
    'GiB that features may take on a device; beyond, detectors train one after '
    'the other.',
    changes_result=False,
  )
  save_detectors: bool = option(
    False,
    'Keep the detectors of the first seed in the workdir, for --exp=detect.',
    changes_result=False,
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
    check_choices('--feature_dtype', [self.feature_dtype], FEATURE_DTYPES)
    for name in ('attacks', 'backbones', 'reference'):
      given = getattr(self, name)
      if not given:
        raise UserError(f'--{name} is empty; give at least one')
      same = given
      if name != 'attacks':
        same = [self.taken(text) for text in given]
      if len(set(same)) < len(given):
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
    for name in (
      'reference_pictures',
      'backbone_pictures',
      'backbone_batch',
      'heldout_pictures',
    ):
      if getattr(self, name) < 0:
        raise UserError(
          f'--{name} is {getattr(self, name)}; it must be 0 or more'
        )
    if self.feature_memory <= 0:
      raise UserError(
        f'--feature_memory is {self.feature_memory}; give GiB above 0'
      )
    if self.natural_plus_dataset and not self.natural_dataset:
      raise UserError(
        '--natural_plus_dataset needs --natural_dataset, the pictures that '
        'were cropped'
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
      for text in (self.victim, *self.reference, *self.backbones)
    ]
    for network in networks:
      build(
        network.name,
        num_classes=2,
        width=network.width,
        image_size=network.size_for(self.image_size),
      )
    others = map(self.taken, (self.victim, *self.backbones))
    if self.taken(self.reference[0]) in others:
      raise UserError(
        f'--reference begins with {self.reference[0]}, which is also the '
        'victim or a backbone; natural kinds need another network'
      )
    for text in self.weights:
      network_text, equals, path = text.partition('=')
      if equals and parse_network(network_text) not in networks:
        raise UserError(
          f'--weights names {network_text!r}, which is not a network of this '
          f'run ({", ".join([self.victim, *self.reference, *self.backbones])})'
        )
      if not equals and text not in PUBLISHED and not os.path.isdir(text):
        raise UserError(
          f'--weights has {text!r}; give {", ".join(PUBLISHED)}, a folder that '
          'exists, or NETWORK=FILE'
        )
      if equals and not os.path.isfile(path):
        raise UserError(f'--weights: there is no file {path}')

  def taken(self, network: str) -> NetworkName:
    """Reads a network with the size that it takes in this run."""
    read = parse_network(network)
    return read._replace(size=read.size_for(self.image_size))


def weight_file(config: Config, network: str) -> str | None:
  """Finds the published weights of a network, if `--weights` asks for them.

  Raises:
    UserError: If they cannot be had.
  """
  from jaxadv.models.weights import published

  wanted = parse_network(network)
  for text in config.weights:
    owner, equals, path = text.partition('=')
    if equals and parse_network(owner) == wanted:
      return path
  places = [text for text in config.weights if '=' not in text]
  others = set(PUBLISHED) - {BACKBONES[wanted.name].published}
  # Names of weights that are of other networks come last.
  for text in sorted(places, key=others.__contains__):
    return str(published.find(wanted, config.image_size, text))
  return None


def is_published(config: Config, network: str) -> bool:
  """Tells whether a network has published weights, without looking for them."""
  owners = [text.partition('=') for text in config.weights]
  return any(
    not equals or parse_network(owner) == parse_network(network)
    for owner, equals, _ in owners
  )


def get_config(variant: str = 'quick', dataset: str = '') -> Config:
  """Gives the config of a variant.

  Args:
    variant: 'quick' (embedded digits, minutes on a CPU), 'small' (real data on
      a CPU or one GPU) or 'paper' (section 3 of the paper).
    dataset: The data set asked for; the variant's own if empty.
      'imagenet_sample' has a small config of its own, with pretrained networks.

  Raises:
    UserError: If there is no such variant.
  """
  check_choices('--variant', [variant], VARIANTS)
  values = {'quick': {}, 'small': _SMALL, 'paper': _PAPER}[variant]
  if variant == 'small' and dataset == 'imagenet_sample':
    values = values | _PRETRAINED
  if dataset:
    values = values | {'dataset': dataset}
  return Config(variant=variant, **values)


_SMALL: dict[str, Any] = dict(
  dataset='cifar10',
  num_pictures=1000,
  epsilon=8 / 255,
  num_trials=1000,
  backbones=('vgg16:0.25', 'mobilenet:0.25'),
  victim='vgg11:0.5',
  victim_epochs=7,
  reference_pictures=10_000,
  reference_epochs=4,
  backbone_epochs=4,
  backbone_batch=128,
  detector_epochs=30,
)
_PRETRAINED: dict[str, Any] = dict(
  image_size=128,
  num_pictures=200,
  victim='mobilenet:0.25:128',
  # The smaller ones have errors enough; the first one has too few.
  reference=('mobilenet:1:224', 'mobilenet:0.5:160', 'mobilenet:0.25:128'),
  backbones=('mobilenet:0.25:128', 'mobilenet:0.5:160'),
  weights=('imagenet',),
)
_PAPER: dict[str, Any] = dict(
  dataset='imagenet2012',
  detector_epochs=30,
  image_size=224,
  num_pictures=3000,
  heldout_pictures=22_000,
  epsilon=8 / 255,
  num_trials=1000,
  victim='vgg16:1:224',
  reference=('resnet50:1:224',),
  natural_dataset='imagenet_a',
  backbones=(
    'vgg16:1:224',
    'densenet121:1:224',
    'mobilenet:1:224',
    'inceptionv3:1:299',
    'xception:1:299',
  ),
  weights=('imagenet',),
  feature_dtype='bfloat16',
)
