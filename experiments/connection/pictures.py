"""The pictures of a run: clean ones, the eight kinds, and controls."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common import data
from experiments.common.attacked import attacked_sets, clean_set
from experiments.common.networks import Network, correct
from experiments.common.runner import ReportProgress
from experiments.connection import networks
from experiments.connection.config import Config, is_published
from jaxadv import models
from jaxadv.attacks import make
from jaxadv.data import imagenet, sources
from jaxadv.errors import UserError
from jaxadv.runs import stream
from jaxadv.sets.io import read, write
from jaxadv.sets.natural import natural as natural_set
from jaxadv.sets.natural import natural_plus
from jaxadv.sets.types import AdversarialSet
from jaxadv.storage import (
  Cache,
  code_version,
  fingerprint,
  read_npz,
  write_npz,
)

# Of the held-out pictures, this many times `num_pictures` are the pool of
# clean pictures (the victim must be right on them), more if the victim errs
# often, half at most; the rest is the pool of natural ones, on which the
# reference errs.
CLEAN_POOL = 1.4
NATURAL = ('natural', 'natural_plus')
# First source id of the kinds that do not come from the held-out pictures.
SOURCES_OF = {
  'natural': 10**8,
  'natural_plus': 10**8,
  'clean_other': 2 * 10**8,
}


def load_pictures(
  config: Config, cache: Cache
) -> tuple[sources.Pictures, sources.Pictures]:
  """Loads the training pictures and the held-out ones, in random order.

  The training pictures make victim, reference and backbones, and there are
  none if all of those have published weights; clean and attacked pictures come
  from the held-out ones alone.

  Raises:
    UserError: If the data set, a split, the wanted size or the wanted number
      of pictures cannot be had.
  """

  for name in (config.natural_dataset, config.natural_plus_dataset):
    if name:  # To be missed before hours of work.
      data.split_names(config, cache, name)
  train, heldout = data.load_sides(
    config,
    cache,
    learns=not all(
      is_published(config, n) for n in networks.networks_of(config)
    ),
    num_heldout=config.heldout_pictures,
  )
  most = len(heldout.labels) // 2
  if config.num_pictures > most:
    raise UserError(
      f'--num_pictures is {config.num_pictures}, but {config.dataset} has '
      f'{len(heldout.labels)} held-out pictures, half of them to attack; ask '
      f'for at most {most}, or give a larger set'
    )
  return train, heldout


class Collection(NamedTuple):
  """All pictures of a run: the clean ones, every kind, and the controls.

  The controls are not adversarial. 'reencoded' holds the clean pictures after
  the whole path of an attacked one; 'clean_other' other pictures, of another
  origin if natural pictures are; 'clean_other_plus' their foreground crops;
  'clean_classes' held-out pictures of the classes that natural ones have.

  Attributes:
    sets: {'clean' | kind | control: set}, each of `num_pictures` pictures;
      sets with common sources list them in the same order.
    victim: The network under attack.
    references: The networks whose errors are the natural kinds; none without
      natural kinds.
  """

  sets: dict[str, AdversarialSet]
  victim: Network
  references: tuple[Network, ...]


def collect(
  config: Config,
  cache: Cache,
  train: sources.Pictures,
  heldout: sources.Pictures,
  report_progress: ReportProgress,
) -> Collection:
  """Builds the clean, attacked and control pictures of a run.

  Args:
    config: The config of the run.
    cache: Keeps networks and sets.
    train: Pictures that networks learn from.
    heldout: Pictures that the sets are made of, in random order.
    report_progress: Called with a few words before each piece of work.

  Returns:
    The pictures.

  Raises:
    UserError: If there are too few pictures of a kind; says how many.
  """
  report_progress(f'victim {config.victim}')
  victim = networks.network_of(
    config, cache, config.victim, train, heldout, config.victim_epochs
  )
  if victim.accuracy is None:
    raise UserError(
      f'--victim {config.victim} has {victim.module.num_classes} classes and '
      f'{config.dataset} has {len(heldout.class_names)}; give weights for '
      'these classes, or none to train it'
    )
  rows = np.arange(len(heldout.labels))
  half = len(rows) // 2
  right = correct(victim.classifier, heldout, config.batch_size) & (rows < half)
  clean = _first(config, heldout, right, 'that the victim classifies correctly')
  last = np.flatnonzero(right)[config.num_pictures - 1]
  border = min(max(round(CLEAN_POOL * config.num_pictures), last + 1), half)

  attacks = attacks_of(config)
  natural = [kind for kind in config.attacks if kind not in attacks]
  found = {'clean': clean_set('clean', clean)}
  references = []
  # Before the attacks, which take longest: there may be too few.
  if natural:
    for name in config.reference:
      report_progress(f'reference {name}')
      references.append(
        networks.network_of(
          config,
          cache,
          name,
          reference_pictures(config, train),
          heldout,
          config.reference_epochs,
        )
      )
    report_progress('pictures natural')
    pool = sources.subset(heldout, np.flatnonzero(rows >= border))
    make = _given_natural if config.natural_dataset else _errors
    everything = make(config, cache, victim, references, pool)
    found |= {
      kind: pictures
      for kind, pictures in everything.items()
      if kind in natural or kind.startswith('clean')
    }
  for kind in config.attacks:
    if kind in attacks:
      report_progress(f'pictures {kind}')
      found[kind] = _attacked(config, cache, kind, attacks[kind], victim, clean)
  # No noise at all: what is left is the path that every attack takes.
  found['reencoded'] = _attacked(
    config, cache, 'ni_plus', {'gain': 0.0}, victim, clean
  )._replace(kind='reencoded')
  # Kinds in the order asked for, controls last.
  order = ['clean', *config.attacks, *controls_of(config)]
  return Collection(
    {name: found[name] for name in order if name in found},
    victim,
    tuple(references),
  )


def controls_of(config: Config) -> tuple[str, ...]:
  """Names the controls among the pictures, see `Collection`."""
  if all(kind in attacks_of(config) for kind in config.attacks):
    return ('reencoded',)
  controls = ('reencoded', 'clean_other', 'clean_other_plus')
  return (*controls, 'clean_classes') if config.natural_dataset else controls


def reference_pictures(
  config: Config, train: sources.Pictures
) -> sources.Pictures:
  """Gives the training pictures that the reference may learn from."""
  count = config.reference_pictures or len(train.labels)
  return sources.subset(train, np.arange(len(train.labels))[:count])


def attacks_of(config: Config) -> dict[str, dict[str, Any]]:
  """Gives the settings of every kind that an attack makes: {kind: settings}."""
  budget = {'epsilon': config.epsilon}
  return {
    'deepfool': {'num_steps': 50, 'overshoot': 0.02, 'num_candidates': 10},
    'fgsm': budget,
    # A quarter of the radius, ten times: the CIFAR-10 challenge of Madry et al.
    'pgd': budget | {'step_size': config.epsilon / 4, 'num_steps': 10},
    'ni_plus': {'filter': config.ni_filter},
    'ni_minus': {'filter': config.ni_filter},
    'hsv': {'num_trials': config.num_trials},
  }


def _first(
  config: Config, heldout: sources.Pictures, wanted: np.ndarray, what: str
) -> sources.Pictures:
  """Takes the first `num_pictures` pictures that are wanted."""
  rows = np.flatnonzero(wanted)
  n = config.num_pictures
  if len(rows) < n:
    raise UserError(
      f'--num_pictures is {n}, but there are only {len(rows)} pictures {what}; '
      f'ask for at most {len(rows)}, or give a larger set'
    )
  return sources.subset(heldout, rows[:n])


def _attacked(
  config: Config,
  cache: Cache,
  kind: str,
  settings: dict[str, Any],
  victim: Network,
  clean: sources.Pictures,
) -> AdversarialSet:
  return attacked_sets(
    cache,
    make(kind, **settings),
    stream(config.seed, f'attack {kind}'),
    victim,
    {'all': clean},
    kind=kind,
    settings=settings,
    ends_early=bool(settings.get('num_trials')),
    batch_size=config.batch_size,
  )['all']


def _errors(
  config: Config,
  cache: Cache,
  victim: Network,
  references: Sequence[Network],
  pool: sources.Pictures,
) -> dict[str, AdversarialSet]:
  """Takes the natural kinds from the references' errors, controls from others.

  'clean_other' are pictures that all references classify correctly.
  """
  del victim  # Natural pictures are adversarial to the reference.
  known = np.logical_and.reduce(
    [
      correct(network.classifier, pool, config.batch_size)
      for network in references
    ]
  )
  others = clean_set(
    'clean_other',
    _first(config, pool, known, 'that the reference classifies correctly'),
  )
  made_from = {
    'references': [network.fingerprint for network in references],
    'pictures': pool.fingerprint,
    'source': pool.source,
    'n': config.num_pictures,
  }

  def make_set(folder, work):
    del work  # Seconds of work: nothing to resume.
    found = natural_set(
      [network.classifier for network in references],
      pool,
      config.num_pictures,
      batch_size=config.batch_size,
    )
    write(found, folder / 'natural')

  version = code_version(__name__)
  folder = cache.get_or_make('natural_set', version, made_from, make_set)
  found = read(folder / 'natural')
  crops = functools.partial(_crops, config, cache, references)
  return {
    'natural': found,
    'natural_plus': crops(found, 'natural_plus'),
    'clean_other': others,
    'clean_other_plus': crops(others, 'clean_other_plus'),
  }


def _given_natural(
  config: Config,
  cache: Cache,
  victim: Network,
  references: Sequence[Network],
  pool: sources.Pictures,
) -> dict[str, AdversarialSet]:
  """Takes the natural kinds from data sets, and controls of two origins.

  'clean_other' are training pictures, 'clean_classes' held-out ones of the
  classes that natural pictures have.
  """
  n = config.num_pictures

  def load(dataset: str, split: str, **options) -> sources.Pictures:
    pictures = data.load_split(config, cache, dataset, split, **options)
    if pool.class_names == imagenet.wnids():
      pictures = imagenet.relabel(pictures)
    if pictures.class_names != pool.class_names:
      raise UserError(
        f'{dataset} has other classes than {config.dataset}: '
        f'{", ".join(pictures.class_names[:3])}, ...'
      )
    return pictures

  whole = load(config.natural_dataset, 'all', seed=config.seed)
  crops = None
  if config.natural_plus_dataset:
    crops = imagenet.join_sources(
      load(config.natural_plus_dataset, 'all'), whole
    )
    ids, place = np.unique(crops.source, return_index=True)
    whole = sources.subset(whole, np.isin(whole.source, ids))
    crops = sources.subset(crops, place[np.searchsorted(ids, whole.source)])
  everyone = np.ones(len(whole.labels), bool)
  found = _first(config, whole, everyone, f'in {config.natural_dataset}')
  classes = np.isin(pool.labels, np.unique(whole.labels))
  kinds = {
    'natural': found,
    'clean_classes': _first(
      config, pool, classes, f'of the classes of {config.natural_dataset}'
    ),
  }
  train_split, heldout_split = data.split_names(config, cache)
  if train_split != heldout_split:
    other = load(config.dataset, train_split, seed=config.seed, limit=n)
    everyone = np.ones(len(other.labels), bool)
    kinds['clean_other'] = _first(config, other, everyone, f'in {train_split}')
  if crops is not None:
    kinds['natural_plus'] = sources.subset(crops, np.arange(n))
  sets = {}
  for kind, pictures in kinds.items():
    made = clean_set(kind, pictures)
    if kind in NATURAL:
      wrong = ~correct(victim.classifier, pictures, config.batch_size)
      made = made._replace(success_float=wrong, success=wrong)
    # Ids of their own: row 5 of a set is not row 5 of another one.
    first = SOURCES_OF.get(kind, 0)
    sets[kind] = made._replace(source=made.source + np.int32(first))
  for kind in ('natural', 'clean_other'):
    if kind in sets and f'{kind}_plus' not in sets:
      sets[f'{kind}_plus'] = _crops(
        config, cache, references, sets[kind], f'{kind}_plus'
      )
  return sets


def _crops(
  config: Config,
  cache: Cache,
  references: Sequence[Network],
  found: AdversarialSet,
  kind: str,
) -> AdversarialSet:
  """Crops pictures to what the first reference looks at.

  Kept in the cache: another device might move a crop by a pixel, and all that
  was made from it would be made anew.
  """
  made_from = {
    'references': [reference.fingerprint for reference in references],
    'pictures': fingerprint([found.images, found.labels]),
  }

  def make_crops(folder, work):
    del work  # Seconds of work: nothing to resume.
    network = references[0]
    module, classifier = network.module, network.classifier
    layer = models.BACKBONES[network.name].saliency

    def front(images):
      return module.apply(
        classifier.variables, classifier.preprocess(images), stop=layer
      )

    def back(features):
      return module.apply(classifier.variables, features, start=layer)

    made = natural_plus(
      [reference.classifier for reference in references],
      front,
      back,
      found,
      batch_size=config.batch_size,
    )
    write_npz(folder / 'crops.npz', images=made.images, success=made.success)

  version = code_version(__name__)
  folder = cache.get_or_make('crops', version, made_from, make_crops)
  made = read_npz(folder / 'crops.npz')
  return found._replace(
    images=made['images'],
    success_float=made['success'],
    success=made['success'],
    kind=kind,
  )
