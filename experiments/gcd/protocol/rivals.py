"""The defences of others: PixelDefend, TVM and adversarial training."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gcd.protocol import study as studies
from experiments.gcd.protocol.repair import in_batches
from experiments.gcd.protocol.setting import GREY, Config
from experiments.gcd.protocol.study import Study
from jaxadv import attacks
from jaxadv.attacks import ddn
from jaxadv.classifier import Classifier
from jaxadv.data import sources
from jaxadv.data.known import may_mirror
from jaxadv.defences.adversarial_training import attacked_batches, moving_all
from jaxadv.defences.purified import purified
from jaxadv.training.classifiers import (
  Perturb,
  fit_classifier,
  usual_recipe,
)
from jaxadv.types import Purifier, picture_keys
from jaxadv.units import to_float

# Attacks that networks are trained with.
TRAINED_WITH = ('pgd', 'ddn')


def max_norm(config: Config) -> float:
  """Gives the longest change of DDN training, as its authors have it."""
  return 2.4 if config.dataset in GREY else 1.0


@functools.cache
def perturb_of(config: Config, attack: str) -> Perturb:
  """Makes what adversarial training does to a batch, once a run."""
  if attack == 'pgd':
    return attacked_batches(moving_all(studies.attack_of(config, 'pgd')))
  return attacked_batches(ddn(config.hardened_steps), max_norm=max_norm(config))


def hardened(study: Study, attack: str) -> Classifier:
  """Trains the victim further on attacked pictures, or finds it.

  Args:
    study: The study.
    attack: 'pgd' or 'ddn'.

  Returns:
    The classifier.
  """
  config, victim = study.config, study.victim
  count = config.hardened_pictures or len(study.train.labels)
  pictures = sources.subset(study.train, slice(0, count))
  # That of the victim, continued.
  recipe = usual_recipe(config.hardened_epochs, len(pictures.labels))
  flip = may_mirror(config.dataset)
  key = studies.stream(config, f'hardened {attack}')
  made_from = {
    'attack': attack,
    'settings': studies.attack_settings(config, 'pgd')
    if attack == 'pgd'
    else {'num_steps': config.hardened_steps, 'max_norm': max_norm(config)},
    'pictures': pictures.fingerprint,
    'recipe': recipe,
    'flip': flip,
    'key': key,
  }

  def fit(work):
    return fit_classifier(
      key,
      victim.module,
      pictures.images,
      pictures.labels,
      recipe,
      preprocess=victim.classifier.preprocess,
      flip=flip,
      perturb=perturb_of(config, attack),
      start=victim.classifier.variables,
      mesh=studies.mesh(),
      checkpoint_dir=work,
    )

  return studies.retrained(study, 'gcd_hardened', made_from, fit)


def withstands(study: Study, classifier: Classifier, attack: str) -> np.ndarray:
  """Attacks a classifier itself, on the clean test pictures.

  Returns:
    bool[N], where it is right on the attacked picture, rounded to 8 bit.
  """
  clean, devices = study.clean['test'], studies.mesh()
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
  return found.correct & ~found.success_uint8


@jax.jit
def _labels(chain, keys, images):
  return chain(to_float(images), keys).argmax(-1)


def purified_labels(
  study: Study, purifier: Purifier, state: Any, images, source
) -> np.ndarray:
  """Classifies pictures behind a purifier.

  Args:
    study: The study.
    purifier: Any; `state` is what it has learnt.
    state: See there.
    images: uint8[N, H, W, C].
    source: int[N], their ids: the draws of a picture go by it.

  Returns:
    int[N], the victim's labels.
  """
  chain = purified(study.victim.classifier, purifier, state)
  keys = picture_keys(
    studies.stream(study.config, 'purifier'), jnp.asarray(source)
  )
  return in_batches(functools.partial(_labels, chain), keys, images)
