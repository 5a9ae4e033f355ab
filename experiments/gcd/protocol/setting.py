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
from jaxadv.models import PUBLISHED, build
from jaxadv.models.names import parse_network

# Attacks as the paper names them: U untargeted, T targeted.
PAPER_NAME = {
  'fgsm': 'FGSM-U',
  'pgd': 'PGD-U',
  'pgd_t': 'PGD-T',
  'deepfool': 'DFool-U',
  'cw': 'CW-U',
  'cw_t': 'CW-T',
  'ddn': 'DDN-U',
  'ddn_t': 'DDN-T',
}
ATTACKS = tuple(PAPER_NAME)
# Those that look for the smallest change in L2, the subject of the paper.
MINIMAL = ('deepfool', 'cw', 'cw_t', 'ddn', 'ddn_t')
# Pictures of one channel, which are padded rather than enlarged.
GREY = ('digits', 'mnist')
# The paper names none of its 20 classes of ImageNet: every fiftieth here.
IMAGENET20 = tuple(range(0, 1000, 50))
PAPER_DATASET = {
  'mnist': 'MNIST',
  'cifar10': 'CIFAR-10',
  'imagenet20': 'ImageNet20',
}


@dataclasses.dataclass(frozen=True)
class Config(Options):
  """Everything that decides a run of the gcd paper.

  All six experiments have the same options, so that victims, attacked
  pictures, detectors and repairs are found in the cache whichever experiment
  made them. Networks are written `name:width`.
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
  image_size: int = option(32, 'Side of the pictures, in pixels.')
  victim: str = option('vgg11:0.125', 'Network under attack, name:width.')
  victim_epochs: int = option(30, "Epochs of the victim's training.")
  weights: str = option(
    '',
    f'Published weights of the victim: {" or ".join(PUBLISHED)} (from '
    '$JAXADV_WEIGHTS_DIR, else downloaded where they can be), a folder or a '
    'file; empty: it is trained.',
  )
  attacks: tuple[str, ...] = option(ATTACKS, f'Attacks: {", ".join(ATTACKS)}.')
  epsilon: float = option(0.3, 'Linf radius of FGSM and PGD, in (0, 1].')
  pgd_steps: int = option(40, 'Steps of PGD.')
  pgd_step_size: float = option(0.01, 'Step of PGD, in image units.')
  cw_searches: int = option(3, 'Binary search steps of Carlini-Wagner.')
  cw_steps: int = option(100, 'Steps of each search of Carlini-Wagner.')
  cw_const: float = option(0.1, 'Constant that Carlini-Wagner starts from.')
  ddn_steps: int = option(100, 'Steps of DDN.')
  num_train: int = option(200, 'Pictures an attack that detectors learn from.')
  cw_train: int = option(
    0, 'Carlini-Wagner, the dearest, attacks so many of them; 0 for all.'
  )
  num_valid: int = option(60, 'Pictures an attack that detectors validate on.')
  num_test: int = option(150, 'Attacked test pictures an attack.')
  num_seeds: int = option(
    3, 'Trainings of every detector and of f_rec; 1 gives no verdicts.'
  )
  detector: str = option('vgg11:0.125', "Network of the paper's detectors.")
  detector_epochs: int = option(10, "Epochs of a detector's training.")
  detector_batch: int = option(32, "Pictures a step of a detector's training.")
  detector_rate: float = option(1e-3, "Learning rate of a detector's training.")
  tws_pictures: int = option(150, 'Test pictures that DET_TWS is tried on.')
  tws_tuned: int = option(
    20, 'Validation pictures of each kind that settings of DET_TWS go by.'
  )
  tws_radius: float = option(
    0.5, 'Linf radius of the steps of DET_TWS, in (0, 1].'
  )
  tws_cap: int = option(30, 'Largest number of untargeted steps of DET_TWS.')
  tws_cap_t: int = option(100, 'Largest number of targeted steps of DET_TWS.')
  pixelcnn_filters: int = option(8, 'Filters of PixelCNN++.')
  pixelcnn_blocks: int = option(1, 'Residual blocks a stage of PixelCNN++.')
  pixelcnn_epochs: int = option(4, 'Epochs of PixelCNN++.')
  pixelcnn_rate: float = option(1e-2, 'Learning rate of PixelCNN++.')
  pixelcnn_batch: int = option(8, 'Pictures a step of PixelCNN++.')
  pixelcnn_dropout: float = option(0.0, 'Rate of dropout of PixelCNN++.')
  pixelcnn_pictures: int = option(
    600, 'Training pictures of PixelCNN++; 0 for all there are.'
  )
  purified_pictures: int = option(100, 'Test pictures that are purified.')
  purified_radii: tuple[str, ...] = option(
    ('4', '8', '16', '32', '77'),
    'Levels of 255 by which PixelDefend may change a pixel; the best on '
    'validation pictures is tested.',
  )
  purified_valid: int = option(
    10, 'Validation pictures of each kind that the radius is chosen on.'
  )
  white_pictures: int = option(30, 'Test pictures attacked in the white box.')
  white_searches: int = option(3, 'Searches of Carlini-Wagner there.')
  white_steps: int = option(150, 'Steps of each search there.')
  white_pgd_steps: int = option(200, 'Steps of PGD in the white box.')
  white_ddn_steps: int = option(320, 'Steps of DDN in the white box.')
  white_const: float = option(
    10.0, 'Constant that Carlini-Wagner starts from there.'
  )
  betas: tuple[str, ...] = option(
    ('10',), "Weights of the detector's loss that are searched."
  )
  num_draws: int = option(
    10, 'Draws of the random mask, to judge and to attack.'
  )
  alphas: tuple[str, ...] = option(
    ('0.1', '0.3', '0.5', '0.7', '0.9'), 'Masking rates of Figure 6.'
  )
  repair_pictures: int = option(
    0, 'Attacked pictures to fine-tune on; 0 for all that detectors learn.'
  )
  repair_copies: int = option(5, 'Masked copies of a picture to fine-tune on.')
  repair_epochs: int = option(
    5, 'Epochs of the fine-tuning; validation pictures pick one.'
  )
  repair_rate: float = option(1e-3, 'Learning rate of the fine-tuning.')
  hardened_growth: tuple[str, ...] = option(
    ('0.3', '0.6'),
    'Shares of its radius that PGD training begins with, each for a quarter of '
    'its epochs.',
  )
  hardened_epochs: int = option(
    8, 'Epochs of adversarial training at its whole radius.'
  )
  hardened_pictures: int = option(
    0, 'Pictures of adversarial training; 0 for all there are.'
  )
  hardened_pgd_steps: int = option(
    7,
    'Steps of PGD in adversarial training; as many as of PGD in the original.',
  )
  hardened_ddn_steps: int = option(
    20, 'Steps of DDN in adversarial training; 100 in the original.'
  )

  def __post_init__(self):
    """Checks what can be checked before any work.

    Raises:
      UserError: Naming the option, its value and what is allowed.
    """
    check_options(self)
    check_choices('--variant', [self.variant], VARIANTS)
    check_choices('--attacks', self.attacks, ATTACKS)
    if not self.attacks or len(set(self.attacks)) < len(self.attacks):
      raise UserError(
        f'--attacks is {",".join(self.attacks)!r}; give at least one, each once'
      )
    zero = (
      'cw_train',
      'pixelcnn_pictures',
      'hardened_pictures',
      'repair_pictures',
    )
    for field in dataclasses.fields(self):
      value, least = getattr(self, field.name), int(field.name not in zero)
      if field.name == 'seed' or isinstance(value, bool):
        continue
      if isinstance(value, int) and value < least:
        raise UserError(
          f'--{field.name} is {value}; it must be {least} or more'
        )
    for name in (
      'epsilon',
      'pgd_step_size',
      'detector_rate',
      'pixelcnn_rate',
      'tws_radius',
      'repair_rate',
    ):
      if not 0 < getattr(self, name) <= 1:
        raise UserError(
          f'--{name} is {getattr(self, name)}; it must lie in (0, 1]'
        )
    radii = numbers('--purified_radii', self.purified_radii, 0, 255)
    if any(radius % 1 for radius in radii):
      raise UserError(
        f'--purified_radii is {",".join(self.purified_radii)!r}; give whole '
        'levels in [0, 255]'
      )
    if self.purified_valid > self.num_valid:
      raise UserError(
        f'--purified_valid is {self.purified_valid}, but there are '
        f'--num_valid={self.num_valid} validation pictures; give at most as '
        'many'
      )
    if not 0 <= self.pixelcnn_dropout < 1:
      raise UserError(
        f'--pixelcnn_dropout is {self.pixelcnn_dropout}; it must lie in [0, 1)'
      )
    for name in ('cw_const', 'white_const'):
      if not 0 < getattr(self, name) < float('inf'):
        raise UserError(
          f'--{name} is {getattr(self, name)}; it must be above 0'
        )
    if self.num_test < 20 or self.num_train < 20 or self.num_valid < 10:
      raise UserError(
        f'--num_train, --num_valid and --num_test are {self.num_train}, '
        f'{self.num_valid} and {self.num_test}; give at least 20, 10 and 20'
      )
    for flag, count in (
      ('tws_pictures', self.tws_pictures),
      ('purified_pictures', self.purified_pictures),
      ('white_pictures', self.white_pictures),
    ):
      if count > self.num_test:
        raise UserError(
          f'--{flag} is {count}, but there are --num_test={self.num_test} '
          'test pictures; give at most as many'
        )
    if self.tws_tuned > self.num_valid:
      raise UserError(
        f'--tws_tuned is {self.tws_tuned}, but there are '
        f'--num_valid={self.num_valid} validation pictures; give at most as '
        'many'
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
    numbers('--betas', self.betas, 0, float('inf'))
    numbers('--alphas', self.alphas, 0, 1)
    numbers('--hardened_growth', self.hardened_growth, 0.01, 1)
    for text in (self.victim, self.detector):
      network = parse_network(text)
      build(
        network.name,
        num_classes=2,
        width=network.width,
        image_size=network.size_for(self.image_size),
      )


def numbers(
  flag: str, given: tuple[str, ...], low: float, high: float
) -> tuple[float, ...]:
  """Reads a list of numbers.

  Raises:
    UserError: If one is no number or lies outside [low, high], or there is
      none.
  """
  try:
    values = tuple(float(text) for text in given)
  except ValueError:
    values = ()
  if not values or not all(low <= value <= high for value in values):
    raise UserError(
      f'{flag} is {",".join(map(str, given))!r}; give numbers in '
      f'[{low:g}, {high:g}], such as {flag}=0.1,0.5'
    )
  return values


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


# The challenge of Madry et al. on CIFAR-10. PixelDefend's radius is 16 levels
# there; 77 are the attacks' epsilon on grey pictures.
_CIFAR_PGD: dict[str, Any] = dict(
  epsilon=8 / 255,
  pgd_step_size=2 / 255,
  pgd_steps=10,
  purified_radii=('4', '8', '16', '32'),
)
_SMALL: dict[str, Any] = dict(
  victim='vgg11:0.25',
  victim_epochs=2,
  detector='vgg11:0.25',
  detector_epochs=5,
  num_train=2_000,
  cw_train=400,
  num_valid=200,
  num_test=300,
  cw_searches=9,
  cw_steps=300,
  cw_const=1e-2,
  tws_pictures=200,
  tws_cap=100,
  tws_cap_t=200,
  pixelcnn_filters=16,
  pixelcnn_epochs=2,
  pixelcnn_pictures=4_000,
  purified_pictures=100,
  purified_valid=20,
  white_pictures=150,
  white_pgd_steps=400,
  betas=('1', '10'),
  repair_pictures=1_000,
  repair_copies=2,
  hardened_epochs=2,
  hardened_pictures=15_000,
)
_COLOUR: dict[str, Any] = _CIFAR_PGD | dict(
  victim_epochs=6, pixelcnn_pictures=1_500
)
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
  cw_searches=9,
  cw_steps=1000,
  cw_const=1e-3,
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
  white_searches=9,
  white_steps=1000,
  white_pgd_steps=400,
  white_ddn_steps=1000,
  white_const=1e-3,
  betas=('0.1', '1', '10'),
  num_draws=30,
  alphas=tuple(f'{tenth / 10:g}' for tenth in range(1, 10)),
  repair_epochs=10,
  hardened_epochs=50,
  hardened_pgd_steps=40,
  hardened_ddn_steps=100,
)
_PAPER_COLOUR: dict[str, Any] = _CIFAR_PGD | dict(
  victim_epochs=100,
  pixelcnn_filters=160,
  hardened_epochs=30,
  hardened_pgd_steps=10,
)
_PAPER_IMAGENET: dict[str, Any] = dict(
  image_size=224,
  tws_radius=0.03,
  victim='resnet152',
  weights='imagenet',
  pixelcnn_pictures=5_000,
)
