"""What the experiments share: pictures, the victim, and attacked pictures.

Detectors learn from pictures of the training split and are tested on held-out
ones; all of them are classified correctly by the victim when clean. A piece's
address in the cache is what it was made from, so six experiments on one data
set make each piece once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.attacked import attacked_sets
from experiments.common.data import load_sides
from experiments.common.detectors import is_minimal
from experiments.common.networks import (
  Network,
  find_weights,
  published_network,
  trained_network,
)
from experiments.common.options import cache_dir
from experiments.common.runner import ReportProgress
from experiments.gcd.config import (
  GREY,
  IMAGENET20,
  PAPER_NAME,
  Config,
  build_attack,
)
from jaxadv import runs, storage
from jaxadv.classifier import Classifier
from jaxadv.data import sources
from jaxadv.data.sources import Pictures
from jaxadv.models.weights import native
from jaxadv.sets.build import correct_pictures
from jaxadv.sets.types import AdversarialSet
from jaxadv.storage import Cache
from jaxadv.types import PyTree

# First source id of held-out pictures: row 5 of one split is not row 5 of the
# other.
HELDOUT = 10**8


class RunInputs(NamedTuple):
  """What a run has made before its cells.

  Attributes:
    config: The config of the run.
    cache: Where its pieces are kept.
    train: All pictures that victims learn from.
    heldout: All held-out pictures.
    victim: The network under attack, with its accuracy.
    clean: {side: clean pictures}, of 'train', 'valid' and 'test', which the
      victim classifies correctly.
    attacked: {attack: {side: attacked versions of the side's pictures}}; those
      to test on are kept before rounding, too.
  """

  config: Config
  cache: Cache
  train: Pictures
  heldout: Pictures
  victim: Network
  clean: dict[str, Pictures]
  attacked: dict[str, dict[str, AdversarialSet]]


def prepare_inputs(
  config: Config, workdir: str, report_progress: ReportProgress
) -> RunInputs:
  """Makes or finds everything that the cells share.

  Args:
    config: The config of the run.
    workdir: Its folder; the cache lies beside it unless an option says
      otherwise.
    report_progress: Called with a few words before each piece of work.

  Returns:
    The inputs.

  Raises:
    UserError: If what was asked for cannot be.
    DataError: If data on disk are broken.
  """
  cache = Cache(cache_dir(config, workdir))
  report_progress('data')
  train, heldout = load_pictures(config, cache)
  report_progress(f'victim {config.victim}')
  victim = victim_of(config, cache, train, heldout)
  clean = clean_pictures(config, victim, train, heldout)
  attacked = {}
  for attack in config.attack_names:
    report_progress(f'attack {PAPER_NAME[attack]}')
    attacked[attack] = attacked_pictures(config, cache, attack, victim, clean)
  return RunInputs(config, cache, train, heldout, victim, clean, attacked)


def stream(config: Config, name: str) -> jax.Array:
  """Gives the random key of one part of the run, whatever the order."""
  # Committed runs were made when this attack had the paper's short name.
  short = name.replace('carlini_wagner', 'cw')
  return runs.stream(config.seed, f'gcd {short}')


def load_pictures(config: Config, cache: Cache) -> tuple[Pictures, Pictures]:
  """Loads the training and the held-out pictures, in random order.

  Raises:
    UserError: If the data set or a split cannot be had, or the splits have
      pictures in common.
  """
  # The paper's subset of ImageNet is classes of a TFDS set.
  subset = config.dataset == 'imagenet20'
  train, heldout = load_sides(
    config,
    cache,
    dataset='imagenet2012' if subset else '',
    shuffle_train=True,
    grey=config.dataset in GREY,
    classes=IMAGENET20 if subset else None,
  )
  return train, heldout._replace(source=heldout.source + np.int32(HELDOUT))


def victim_of(
  config: Config, cache: Cache, train: Pictures, heldout: Pictures
) -> Network:
  """Trains the classifier under attack, or finds it in the cache.

  Of published weights of ImageNet's 1,000 classes, it keeps those of the data.

  Raises:
    UserError: If there are no such weights, or they are of other classes.
  """
  if config.weights:
    return published_network(
      config.victim,
      find_weights(config.victim, config.image_size, config.weights),
      heldout,
      image_size=config.image_size,
      dataset=config.dataset,
      batch_size=config.batch_size,
      restrict=True,
    )
  return trained_network(
    stream(config, 'victim'),
    cache,
    config.victim,
    train,
    heldout,
    config.victim_epochs,
    config=config,
  )


def retrained(
  inputs: RunInputs,
  kind: str,
  made_from: dict[str, Any],
  fit: Callable[[Path], PyTree],
) -> Classifier:
  """Gives the victim other weights, or finds them in the cache.

  Args:
    inputs: The inputs of the run.
    kind: Of the entry of the cache.
    made_from: What the weights depend on, apart from the victim.
    fit: A function of a module, by whose code the weights are found again;
      given a folder for its checkpoints, returns the variables.

  Returns:
    The classifier.
  """
  victim = inputs.victim.classifier
  made_from = made_from | {'victim': inputs.victim.fingerprint}

  def make(folder, work):
    native.write_variables(folder / 'variables.npz', fit(work))

  version = storage.code_version(__name__, fit.__module__)
  folder = inputs.cache.get_or_make(kind, version, made_from, make)
  return dataclasses.replace(
    victim,
    variables=native.read_variables(folder / 'variables.npz', victim.variables),
  )


def clean_pictures(
  config: Config, victim: Network, train: Pictures, heldout: Pictures
) -> dict[str, Pictures]:
  """Takes the clean pictures of each side, which the victim gets right.

  Raises:
    UserError: If there are too few; says how many.
  """
  wanted = config.num_train + config.num_valid
  # Enough to find as many in, so that not the whole split is classified.
  pool = sources.subset(train, slice(0, max(2 * wanted, 1000)))
  right = lambda pictures, n: correct_pictures(
    victim.classifier, pictures, n, batch_size=config.batch_size
  )
  learnt = right(pool, wanted)
  return {
    'train': sources.subset(learnt, slice(0, config.num_train)),
    'valid': sources.subset(learnt, slice(config.num_train, None)),
    'test': right(
      sources.subset(heldout, slice(0, max(4 * config.num_test, 1000))),
      config.num_test,
    ),
  }


def targets_of(config: Config, pictures: Pictures) -> np.ndarray:
  """Draws a class to reach for every picture, uniform over the other ones.

  A picture has the same target in every run of the seed.
  """
  num_classes = len(pictures.class_names)
  shift = [
    np.random.default_rng([config.seed, 5, int(source)]).integers(
      1, num_classes
    )
    for source in pictures.source
  ]
  return ((pictures.labels + shift) % num_classes).astype(np.int32)


def attacked_pictures(
  config: Config,
  cache: Cache,
  attack: str,
  victim: Network,
  clean: dict[str, Pictures],
) -> dict[str, AdversarialSet]:
  """Attacks the clean pictures of all sides, or finds them in the cache.

  Carlini-Wagner, which costs most, attacks the first `cw_train` of those to
  train on.
  """
  if attack.startswith('carlini_wagner'):
    first = sources.subset(clean['train'], slice(0, config.cw_train or None))
    clean = clean | {'train': first}
  settings = config.attack_settings(attack)
  return attacked_sets(
    cache,
    build_attack(attack, settings),
    stream(config, f'attack {attack}'),
    victim,
    clean,
    kind=attack,
    settings=settings,
    targets={side: targets_of(config, own) for side, own in clean.items()}
    if attack.endswith('_t')
    else None,
    exact=('test',),
    ends_early=is_minimal(attack),
    batch_size=config.batch_size,
  )


def fingerprints(inputs: RunInputs) -> dict[str, str]:
  """Gives the hashes of data and weights, for the provenance."""
  return {
    'training pictures': inputs.train.fingerprint,
    'held-out pictures': inputs.heldout.fingerprint,
    'victim': inputs.victim.fingerprint,
  }
