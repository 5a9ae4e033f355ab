"""The defences of others: PixelDefend, TVM and adversarial training."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gcd import repair, report
from experiments.gcd.config import GREY, Config, build_attack
from experiments.gcd.pictures import RunInputs, retrained, stream
from jaxadv import attacks
from jaxadv.classifier import Classifier
from jaxadv.data.batching import map_batches
from jaxadv.data.known import may_mirror
from jaxadv.defences.adversarial_training import (
  Phase,
  Recipe,
  fit_adversarial,
)
from jaxadv.defences.purified import purified
from jaxadv.inputs import as_float
from jaxadv.training import mesh
from jaxadv.training.classifiers import usual_recipe
from jaxadv.types import Purifier, picture_keys

# Clean pictures (%) that an adversarially trained network keeps, where none
# is printed.
USUAL_SHARE = 90.0


def max_norm(config: Config) -> float:
  """Gives the longest change of DDN training, as its authors have it."""
  return 2.4 if config.dataset in GREY else 1.0


def recipe_of(config: Config, attack: str, num_pictures: int) -> Recipe:
  """Gives the adversarial training of the victim, continued.

  The radius of PGD grows: a network that meets all of it at once may end by
  answering one class. DDN makes no change larger than it takes.

  Args:
    config: The config of the run.
    attack: One of `TRAINING_ATTACKS`.
    num_pictures: That it learns from.
  """
  whole = usual_recipe(config.adversarial_epochs, num_pictures)
  part = dataclasses.replace(
    whole,
    num_epochs=max(1, config.adversarial_epochs // 4),
    schedule='constant',
  )
  hyper = config.training_settings(attack)
  if attack == 'ddn':
    return Recipe(
      (Phase(whole),),
      'ddn',
      tuple(hyper.items()),
      max_norm=max_norm(config),
    )
  growing = [Phase(part, share=float(s)) for s in config.adversarial_growth]
  phases = (*growing, Phase(whole))
  return Recipe(phases, 'pgd', tuple(hyper.items()), move_all=True)


def adversarially_trained(inputs: RunInputs, attack: str) -> Classifier:
  """Trains the victim further on attacked pictures, or finds it.

  Args:
    inputs: The inputs of the run.
    attack: 'pgd' or 'ddn'.

  Returns:
    The classifier.
  """
  config, victim = inputs.config, inputs.victim
  pictures = repair.clean_pictures(
    inputs, config.adversarial_pictures or len(inputs.train.labels)
  )
  recipe = recipe_of(config, attack, len(pictures.labels))
  flip = may_mirror(config.dataset)
  key = stream(config, f'hardened {attack}')
  made_from = {
    'recipe': recipe,
    'pictures': pictures.fingerprint,
    'flip': flip,
    'key': key,
  }

  def fit(work):
    return fit_adversarial(
      key,
      victim.module,
      pictures.images,
      pictures.labels,
      recipe,
      start=victim.classifier.variables,
      checkpoint_dir=work,
      preprocess=victim.classifier.preprocess,
      flip=flip,
      mesh=mesh.all_devices(),
    )

  return retrained(inputs, 'gcd_hardened', made_from, fit)


def robust(
  inputs: RunInputs, classifier: Classifier, attack: str, side: str
) -> np.ndarray:
  """Attacks a classifier itself, on the clean pictures of a side.

  Args:
    inputs: The inputs of the run.
    classifier: Any.
    attack: One of `TRAINING_ATTACKS`. DDN, which always finds some change, has
      success with one of half the length that DDN training goes to.
    side: 'valid' or 'test'.

  Returns:
    bool[N], where it is right on the attacked picture, rounded to 8 bit.
  """
  clean, devices = inputs.clean[side], mesh.all_devices()
  # No more rows than there are pictures, but a multiple of the devices.
  size = devices.size if devices else 1
  rows = -(-len(clean.labels) // size) * size
  found = attacks.evaluate(
    build_attack(attack, inputs.config.attack_settings(attack)),
    stream(inputs.config, f'attack {attack}'),
    classifier,
    clean.images,
    clean.labels,
    clean.source,
    batch_size=min(inputs.config.batch_size, rows),
    mesh=devices,
  )
  beaten = found.success_uint8
  if attack == 'ddn':
    beaten = beaten & (found.l2 <= max_norm(inputs.config) / 2)
  return found.correct & ~beaten


def unconverged(
  inputs: RunInputs, attack: str, kept: float, robust_share: float
) -> list[str]:
  """Says why adversarial training gave no baseline yet, if it did not.

  Args:
    inputs: The inputs of the run.
    attack: What it was trained with.
    kept: Clean validation pictures that it gets right, of those that the
      victim does, in per cent.
    withstood: Those on which it withstands its own attack, in per cent.
  """
  name = f'AT_{attack.upper()}'
  printed, dataset = report.printed('table5'), report.paper_dataset(inputs)
  least = USUAL_SHARE
  if dataset:
    own, victim = (printed[dataset, 'Clean', n] for n in (name, 'F'))
    least = 100 * own / victim
  found = []
  if kept < least:
    found.append(
      f"{name} keeps {kept:.1f} % of the victim's clean validation pictures, "
      f'{least:.1f} % are needed{" (the paper)" if dataset else ""}'
    )
  if robust_share < kept / 2:
    found.append(
      f'{name} withstands the attack it was trained with on '
      f'{robust_share:.1f} % of the validation pictures, not on half of the '
      f'{kept:.1f} % it keeps'
    )
  return [f'{sentence}: it has not converged' for sentence in found]


@jax.jit
def _labels(chain, keys, images):
  return chain(images, keys).argmax(-1)


def purified_labels(
  inputs: RunInputs, purifier: Purifier, state: Any, images, source
) -> np.ndarray:
  """Classifies pictures behind a purifier.

  Args:
    inputs: The inputs of the run.
    purifier: Any; `state` is what it has learnt.
    state: See there.
    images: [N, H, W, C], uint8, or float32 in [0, 1].
    source: int[N], their ids: the draws of a picture go by it.

  Returns:
    int[N], the victim's labels.
  """
  chain = purified(inputs.victim.classifier, purifier, state)
  keys = picture_keys(stream(inputs.config, 'purifier'), jnp.asarray(source))
  return map_batches(
    functools.partial(_labels, chain),
    keys,
    as_float(images),
    batch_size=repair.ROWS,
  )
