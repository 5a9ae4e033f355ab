"""Adversarial training: every batch is replaced by attacked pictures."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.attacks import make
from jaxadv.attacks.drive import Composite
from jaxadv.attacks.rows import num_classes
from jaxadv.errors import UserError
from jaxadv.norms import l2_ball
from jaxadv.training.classifiers import Perturb, fit_classifier
from jaxadv.training.state import TrainConfig
from jaxadv.types import (
  Attack,
  ClassifierLike,
  Images,
  Keys,
  Labels,
  PyTree,
  picture_keys,
)

if TYPE_CHECKING:
  import flax.linen as nn


def attacked_batches(
  attack: Attack | Composite, *, max_norm: float | None = None
) -> Perturb:
  """Makes the change that adversarial training makes to its batches.

  Args:
    attack: An untargeted attack; it is given the true labels.
    max_norm: Largest L2 norm of a change in image units, above 0; a longer
      one is shortened. None leaves it as the attack has it.

  Returns:
    `(key, classifier, images, labels) -> images`, pure: one key, any
    classifier, float32[B, H, W, C] in [0, 1] and int32[B] to attacked
    pictures of that shape. A row's random draws depend on its place.

  Raises:
    UserError: If `max_norm` is not a positive number.

  Example:
    >>> perturb = attacked_batches(ddn(100), max_norm=1.0)
    >>> attacked = perturb(key, classifier, images, labels)

  References:
    Madry et al., Towards Deep Learning Models Resistant to Adversarial
    Attacks, 2018, https://arxiv.org/abs/1706.06083, section 3; Rony et al.,
    Decoupling Direction and Norm, 2019, https://arxiv.org/abs/1811.09600,
    section 6 (`max_norm`).
  """
  ball = None if max_norm is None else l2_ball(max_norm)

  def perturb(
    key: jax.Array, classifier: ClassifierLike, images: Images, labels: Labels
  ) -> Images:
    keys = picture_keys(key, jnp.arange(len(labels)))
    attacked = attack(keys, classifier, images, labels).images
    if ball is None:
      return attacked
    longest = jnp.full(len(labels), ball.epsilon, jnp.float32)
    return images + ball.project(attacked - images, longest)

  return perturb


def moving_all(attack: Attack) -> Attack:
  """Lets an attack also move pictures that are misclassified when clean.

  Attacks of `jaxadv` give these back as they are, which counts as success.
  In adversarial training that would leave a network untrained against the
  attack where it has most to learn.

  Args:
    attack: A budget attack with a random start, such as PGD, that asks the
      classifier only to judge before its first step.

  Returns:
    An `Attack` that is told at its start that every label is right.
  """

  def init(
    keys: Keys, classifier: ClassifierLike, images: Images, labels: Labels
  ) -> Any:
    right = jax.nn.one_hot(labels, num_classes(classifier, images))
    return attack.init(keys, lambda images: right, images, labels)

  return dataclasses.replace(attack, init=init)


@dataclasses.dataclass(frozen=True)
class Phase:
  """A part of a training; the optimizer starts it afresh.

  Attributes:
    config: Epochs, batch size, optimizer and learning rate.
    attacked: Whether batches are replaced by attacked ones.
    share: Of the attack's radius, its step and the largest norm, in (0, 1]. A
      network that meets the whole radius at once may give up and answer one
      class, which growing shares avoid.
  """

  config: TrainConfig
  attacked: bool = True
  share: float = 1.0


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a network is trained adversarially; plain values, compared by value.

  Attributes:
    phases: One after the other.
    attack: A name in `jaxadv.attacks.ATTACKS`.
    hyper: Its hyperparameters, as pairs of name and value.
    max_norm: See `attacked_batches`.
    move_all: Whether `moving_all` applies to the attack.
  """

  phases: tuple[Phase, ...]
  attack: str
  hyper: tuple[tuple[str, float | str], ...] = ()
  max_norm: float | None = None
  move_all: bool = False


def _phases(
  epochs: tuple[int, ...],
  rates: tuple[float, ...],
  *,
  batch_size: int = 128,
  optimizer: str,
  num_natural: int = 0,
) -> tuple[Phase, ...]:
  """Gives phases at a constant rate each, the first so many natural."""
  return tuple(
    Phase(
      TrainConfig(
        num_epochs=num_epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=rate,
        schedule='constant',
      ),
      attacked=number >= num_natural,
    )
    for number, (num_epochs, rate) in enumerate(zip(epochs, rates, strict=True))
  )


def _sgd(weight_decay: str) -> str:
  """Gives SGD whose weight decay is a part of the gradient."""
  return f'add_decayed_weights:weight_decay={weight_decay},sgd:momentum=0.9'


_PGD_MNIST = (('epsilon', 0.3), ('step_size', 0.01), ('num_steps', 40))
_PGD_CIFAR10 = (
  ('epsilon', 8 / 255),
  ('step_size', 2 / 255),
  ('num_steps', 10),
)
_DDN = (('num_steps', 100),)

# By attack and data set, as published; steps are counted in whole epochs of
# 60 000 (MNIST) and 50 000 (CIFAR-10) pictures. PGD: 100 000 steps, and 80 000
# with the rate lowered after 40 000 and 60 000 (Madry et al.'s public
# configurations). DDN: Rony et al.'s training commands. Their dropout (MNIST
# 0.5, CIFAR-10 0.3) belongs to the network.
RECIPES: dict[str, Recipe] = {
  'pgd_mnist': Recipe(
    _phases((84,), (1e-4,), batch_size=50, optimizer='adam'),
    'pgd',
    _PGD_MNIST,
    move_all=True,
  ),
  'pgd_cifar10': Recipe(
    _phases((102, 51, 51), (0.1, 0.01, 0.001), optimizer=_sgd('2e-4')),
    'pgd',
    _PGD_CIFAR10,
    move_all=True,
  ),
  'ddn_mnist': Recipe(
    _phases((30, 20), (0.01, 0.001), optimizer=_sgd('1e-6')),
    'ddn',
    _DDN,
    max_norm=2.4,
  ),
  'ddn_cifar10': Recipe(
    _phases(
      (60, 60, 40, 40, 30),
      (0.1, 0.02, 0.004, 0.0008, 0.0008),
      optimizer=_sgd('5e-4'),
      num_natural=4,
    ),
    'ddn',
    _DDN,
    max_norm=1.0,
  ),
}


# Hyperparameters in image units.
_SIZES = ('epsilon', 'step_size')


@functools.cache
def perturb_of(recipe: Recipe, phase: Phase) -> Perturb | None:
  """Builds the change of a phase once, so that its training compiles once.

  Args:
    recipe: The recipe.
    phase: One of its phases.

  Returns:
    As `attacked_batches`; None of a phase that is not attacked.

  Raises:
    UserError: If the attack or a hyperparameter of it is unknown.
  """
  if not phase.attacked:
    return None
  share, hyper = phase.share, dict(recipe.hyper)
  hyper |= {k: float(v) * share for k, v in hyper.items() if k in _SIZES}
  made = make(recipe.attack, **hyper)
  if recipe.move_all:
    if isinstance(made, Composite):
      raise UserError(
        f'move_all takes a single attack, but {recipe.attack} with '
        f'{dict(recipe.hyper)} is several; leave move_all out'
      )
    made = moving_all(made)
  longest = recipe.max_norm and recipe.max_norm * share
  return attacked_batches(made, max_norm=longest)


def fit_adversarial(
  key: jax.Array,
  module: nn.Module,
  images: np.ndarray,
  labels: np.ndarray,
  recipe: Recipe,
  *,
  start: PyTree | None = None,
  checkpoint_dir: str | os.PathLike[str] | None = None,
  **options: Any,
) -> PyTree:
  """Trains a backbone adversarially; the weights are those of the last epoch.

  The attacked pictures of a step are made inside the compiled training step,
  from the weights before it and in inference mode. Give it to
  `jaxadv.training.classifiers.cached_classifier` as `fit`, with the recipe,
  to keep the weights.

  Args:
    key: One key.
    module: A backbone.
    images: uint8[N, H, H, C].
    labels: int32[N].
    recipe: One of `RECIPES`, or another.
    start: Variables to start from; default fresh ones.
    checkpoint_dir: Folder of this training alone, its recipe included, to
      resume from after an interruption.
    **options: As of `fit_classifier` (preprocess, flip, mesh).

  Returns:
    `{'params': ..., 'batch_stats': ...}`.

  Raises:
    UserError: If the attack or a hyperparameter of it is unknown.
    DataError: If the loss is not finite or memory does not suffice.

  Departs from the paper: momentum starts from zero where the learning rate
  changes, and weight decay leaves out biases and normalisation; the pictures
  of PGD, too, are made in inference mode.

  References:
    Madry et al., 2018, https://arxiv.org/abs/1706.06083; Rony et al., 2019,
    https://arxiv.org/abs/1811.09600, section 6.
  """
  variables = start
  for number, phase in enumerate(recipe.phases):
    folder = checkpoint_dir and Path(checkpoint_dir) / f'phase{number}'
    variables = fit_classifier(
      jax.random.fold_in(key, number),
      module,
      images,
      labels,
      phase.config,
      perturb=perturb_of(recipe, phase),
      start=variables,
      checkpoint_dir=folder,
      **options,
    )
  return variables
