"""The defences of others: PixelDefend, TVM and adversarial training."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gcd.protocol import record, repair
from experiments.gcd.protocol import study as studies
from experiments.gcd.protocol.setting import GREY, Config
from experiments.gcd.protocol.study import Study
from jaxadv import attacks
from jaxadv.classifier import Classifier
from jaxadv.data.known import may_mirror
from jaxadv.defences.adversarial_training import (
  Phase,
  Recipe,
  fit_adversarial,
)
from jaxadv.defences.purified import purified
from jaxadv.inputs import as_float
from jaxadv.training.classifiers import usual_recipe
from jaxadv.types import Purifier, picture_keys

# Attacks that networks are trained with.
TRAINED_WITH = ('pgd', 'ddn')
# Clean pictures (%) that a hardened network keeps, where none is printed.
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
    attack: One of `TRAINED_WITH`.
    num_pictures: That it learns from.
  """
  whole = usual_recipe(config.hardened_epochs, num_pictures)
  part = dataclasses.replace(
    whole,
    num_epochs=max(1, config.hardened_epochs // 4),
    schedule='constant',
  )
  if attack == 'ddn':
    return Recipe(
      (Phase(whole),),
      'ddn',
      (('num_steps', config.hardened_ddn_steps),),
      max_norm=max_norm(config),
    )
  growing = [Phase(part, share=float(s)) for s in config.hardened_growth]
  phases = (*growing, Phase(whole))
  steps, size = config.hardened_pgd_steps, config.pgd_step_size
  if steps < config.pgd_steps:
    # Few steps have to be longer to reach the border of the ball.
    size = max(size, 2.5 * config.epsilon / steps)
  hyper = (
    ('epsilon', config.epsilon),
    ('step_size', size),
    ('num_steps', steps),
  )
  return Recipe(phases, 'pgd', hyper, move_all=True)


def hardened(study: Study, attack: str) -> Classifier:
  """Trains the victim further on attacked pictures, or finds it.

  Args:
    study: The study.
    attack: 'pgd' or 'ddn'.

  Returns:
    The classifier.
  """
  config, victim = study.config, study.victim
  pictures = repair.clean_pictures(
    study, config.hardened_pictures or len(study.train.labels)
  )
  recipe = recipe_of(config, attack, len(pictures.labels))
  flip = may_mirror(config.dataset)
  key = studies.stream(config, f'hardened {attack}')
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
      mesh=studies.mesh(),
    )

  return studies.retrained(study, 'gcd_hardened', made_from, fit)


def withstands(
  study: Study, classifier: Classifier, attack: str, side: str
) -> np.ndarray:
  """Attacks a classifier itself, on the clean pictures of a side.

  Args:
    study: The study.
    classifier: Any.
    attack: One of `TRAINED_WITH`. DDN, which always finds some change, has
      success with one of half the length that DDN training goes to.
    side: 'valid' or 'test'.

  Returns:
    bool[N], where it is right on the attacked picture, rounded to 8 bit.
  """
  clean, devices = study.clean[side], studies.mesh()
  # No more rows than there are pictures, but a multiple of the devices.
  size = devices.size if devices else 1
  rows = -(-len(clean.labels) // size) * size
  found = attacks.evaluate(
    studies.attack_of(study.config, attack),
    studies.stream(study.config, f'attack {attack}'),
    classifier,
    clean.images,
    clean.labels,
    clean.source,
    batch_size=min(study.config.batch_size, rows),
    mesh=devices,
  )
  beaten = found.success_uint8
  if attack == 'ddn':
    beaten = beaten & (found.l2 <= max_norm(study.config) / 2)
  return found.correct & ~beaten


def unconverged(
  study: Study, attack: str, kept: float, withstood: float
) -> list[str]:
  """Says why a hardened network is no baseline yet, if it is none.

  Args:
    study: The study.
    attack: What it was trained with.
    kept: Clean validation pictures that it gets right, of those that the
      victim does, in per cent.
    withstood: Those on which it withstands its own attack, in per cent.
  """
  name = f'AT_{attack.upper()}'
  printed, dataset = record.printed('table5'), record.paper_dataset(study)
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
  if withstood < kept / 2:
    found.append(
      f'{name} withstands the attack it was trained with on {withstood:.1f} % '
      f'of the validation pictures, not on half of the {kept:.1f} % it keeps'
    )
  return [f'{sentence}: it has not converged' for sentence in found]


@jax.jit
def _labels(chain, keys, images):
  return chain(images, keys).argmax(-1)


def purified_labels(
  study: Study, purifier: Purifier, state: Any, images, source
) -> np.ndarray:
  """Classifies pictures behind a purifier.

  Args:
    study: The study.
    purifier: Any; `state` is what it has learnt.
    state: See there.
    images: [N, H, W, C], uint8, or float32 in [0, 1].
    source: int[N], their ids: the draws of a picture go by it.

  Returns:
    int[N], the victim's labels.
  """
  chain = purified(study.victim.classifier, purifier, state)
  keys = picture_keys(
    studies.stream(study.config, 'purifier'), jnp.asarray(source)
  )
  return repair.in_batches(
    functools.partial(_labels, chain), keys, as_float(images)
  )
