"""What the experiments share: pictures, the victim, and attacked pictures.

Detectors learn from pictures of the training split and are tested on held-out
ones; all of them are classified correctly by the victim when clean. A piece's
address in the cache is what it was made from, so six experiments on one data
set make each piece once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.gcd.protocol.setting import (
  GREY,
  IMAGENET20,
  MINIMAL,
  PAPER_NAME,
  Config,
)
from jaxadv import attacks, experiment, storage
from jaxadv.classifier import Classifier, predict
from jaxadv.data import imagenet, pipeline, sources
from jaxadv.data.known import may_mirror
from jaxadv.data.sources import Pictures
from jaxadv.errors import DataError, UserError
from jaxadv.experiment import data_dir
from jaxadv.models.names import parse_network
from jaxadv.models.pretrained import load_classifier, restricted
from jaxadv.models.weights import native, published
from jaxadv.sets.build import correct_pictures
from jaxadv.storage import Cache
from jaxadv.training.classifiers import (
  Trained,
  cached_classifier,
)
from jaxadv.training.mesh import all_devices as mesh
from jaxadv.types import Attack, Batch, PyTree

Note = Callable[..., None]
SIDES = ('train', 'valid', 'test')
# First source id of held-out pictures: row 5 of one split is not row 5 of the
# other.
HELDOUT = 10**8
# Slots that a finished picture makes room in; helps attacks that end early.
NUM_SLOTS = 32
# Rows of every batch that detectors read.
BATCH = 100


class Attacked(NamedTuple):
  """Attacked versions of the pictures of one side, rounded to 8 bit.

  Attributes:
    images: uint8[N, H, W, C].
    success: bool[N], whether the attack had success before rounding.
    success_uint8: bool[N], whether `images` are a success.
    l2: float64[N], size of the change before rounding, in image units.
    linf: float64[N].
    images_float: float32[N, H, W, C], as the attack left them, of the test
      pictures; None of the others, which nobody asks for.
  """

  images: np.ndarray
  success: np.ndarray
  success_uint8: np.ndarray
  l2: np.ndarray
  linf: np.ndarray
  images_float: np.ndarray | None = None


class Study(NamedTuple):
  """What a run has made before its cells.

  Attributes:
    config: The config of the run.
    cache: Where its pieces are kept.
    train: All pictures that victims learn from.
    heldout: All held-out pictures.
    victim: The classifier under attack, with its accuracy.
    clean: {side: clean pictures}, which the victim classifies correctly.
    attacked: {attack: {side: attacked versions of the side's pictures}}.
  """

  config: Config
  cache: Cache
  train: Pictures
  heldout: Pictures
  victim: Trained
  clean: dict[str, Pictures]
  attacked: dict[str, dict[str, Attacked]]


def prepare(config: Config, workdir: str, note: Note) -> Study:
  """Makes or finds everything that the cells share.

  Args:
    config: The config of the run.
    workdir: Its folder; the cache lies beside it unless an option says
      otherwise.
    note: Called with a few words before each piece of work.

  Returns:
    The study.

  Raises:
    UserError: If what was asked for cannot be.
    DataError: If data on disk are broken.
  """
  cache = Cache(experiment.cache_dir(config, workdir))
  note('data')
  train, heldout = load_pictures(config, cache)
  note(f'victim {config.victim}')
  victim = trained_victim(config, cache, train, heldout)
  clean = clean_pictures(config, victim, train, heldout)
  attacked = {}
  for attack in config.attacks:
    note(f'attack {PAPER_NAME[attack]}')
    attacked[attack] = attacked_pictures(config, cache, attack, victim, clean)
  return Study(config, cache, train, heldout, victim, clean, attacked)


def stream(config: Config, name: str):
  """Gives the random key of one part of the run, whatever the order."""
  return experiment.stream(config.seed, f'gcd {name}')


def load_pictures(config: Config, cache: Cache) -> tuple[Pictures, Pictures]:
  """Loads the training and the held-out pictures, in random order.

  Raises:
    UserError: If the data set or a split cannot be had, or the splits have
      pictures in common.
  """
  # The paper's subset of ImageNet is classes of a TFDS set.
  subset = config.dataset == 'imagenet20'
  dataset = 'imagenet2012' if subset else config.dataset
  folders: dict[str, Any] = dict(
    data_dir=data_dir(config.data_dir), cache_dir=cache.root
  )
  usual = sources.usual_splits(sources.splits(dataset, **folders))
  train_split, heldout_split = (
    given or name
    for given, name in zip(
      (config.train_split, config.heldout_split), usual, strict=True
    )
  )
  shared = sources.overlap(dataset, train_split, heldout_split, **folders)
  if shared:
    raise UserError(
      f'--train_split {train_split} and --heldout_split {heldout_split} of '
      f'{dataset} have {shared} pictures in common; give two that have none, '
      'such as train[:70%] and train[70%:]'
    )

  def load(split: str) -> Pictures:
    grey = config.dataset in GREY
    found = sources.load(
      dataset,
      split,
      image_size=None if grey else config.image_size,
      channels=1 if grey else 3,
      classes=IMAGENET20 if subset else None,
      **folders,
    )
    if subset:
      found = imagenet.restrict(found, IMAGENET20)
    return sources.shuffled(
      sources.padded(found, config.image_size), config.seed
    )

  train, heldout = load(train_split), load(heldout_split)
  return train, heldout._replace(source=heldout.source + np.int32(HELDOUT))


def trained_victim(
  config: Config, cache: Cache, train: Pictures, heldout: Pictures
) -> Trained:
  """Trains the classifier under attack, or finds it in the cache.

  Of published weights of ImageNet's 1,000 classes, it keeps those of the data.

  Raises:
    UserError: If there are no such weights, or they are of other classes.
  """
  network = parse_network(config.victim)
  if config.weights:
    path = published.find(network, config.image_size, config.weights)
    module, classifier = load_classifier(network, config.image_size, path)
    if module.num_classes == len(imagenet.wnids()) != len(train.class_names):
      classes = imagenet.labels_of(train.class_names)
      module, classifier = restricted(module, classifier, classes)
    published.check_classes(
      path, module.num_classes, train.class_names, config.dataset
    )
    logits = predict(classifier, heldout.images, config.batch_size)
    return Trained(
      module,
      classifier,
      storage.fingerprint(
        [module, classifier.variables, classifier.preprocess]
      ),
      float(np.mean(logits.argmax(-1) == heldout.labels)),
    )
  return cached_classifier(
    stream(config, 'victim'),
    cache,
    network,
    train,
    heldout,
    config.victim_epochs,
    image_size=config.image_size,
    flip=may_mirror(config.dataset),
    identity={'seed': config.seed},
    batch_size=config.batch_size,
    mesh=mesh(),
  )


def retrained(
  study: Study,
  kind: str,
  made_from: dict[str, Any],
  fit: Callable[[Path], PyTree],
) -> Classifier:
  """Gives the victim other weights, or finds them in the cache.

  Args:
    study: The study.
    kind: Of the entry of the cache.
    made_from: What the weights depend on, apart from the victim.
    fit: A function of a module, by whose code the weights are found again;
      given a folder for its checkpoints, returns the variables.

  Returns:
    The classifier.
  """
  victim = study.victim.classifier
  made_from = made_from | {'victim': study.victim.identity}

  def make(folder, work):
    native.write_variables(folder / 'variables.npz', fit(work))

  version = storage.code_version(__name__, fit.__module__)
  folder = study.cache.get_or_make(kind, version, made_from, make)
  return dataclasses.replace(
    victim,
    variables=native.read_variables(folder / 'variables.npz', victim.variables),
  )


def clean_pictures(
  config: Config, victim: Trained, train: Pictures, heldout: Pictures
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


def attack_settings(config: Config, attack: str) -> dict[str, Any]:
  """Gives the hyperparameters of an attack (section 3 of the spec)."""
  name = attack.removesuffix('_t')
  settings: dict[str, dict[str, Any]] = {
    'fgsm': {'epsilon': config.epsilon},
    'pgd': {
      'epsilon': config.epsilon,
      'step_size': config.pgd_step_size,
      'num_steps': config.pgd_steps,
    },
    'deepfool': {'num_steps': 50, 'overshoot': 0.02, 'num_candidates': 10},
    'cw': {
      'binary_search_steps': config.cw_searches,
      'num_steps': config.cw_steps,
      'learning_rate': 0.01,
      'initial_const': config.cw_const,
      'abort_early': True,
    },
    'ddn': {'num_steps': config.ddn_steps},
  }
  return settings[name] | ({'targeted': True} if attack.endswith('_t') else {})


def attack_of(config: Config, attack: str) -> Attack:
  """Builds an attack of the run."""
  name = attack.removesuffix('_t')
  made = attacks.make(
    {'cw': 'carlini_wagner'}.get(name, name), **attack_settings(config, attack)
  )
  assert isinstance(made, Attack)  # None of them is a sequence.
  return made


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
  victim: Trained,
  clean: dict[str, Pictures],
) -> dict[str, Attacked]:
  """Attacks the clean pictures of all sides, or finds them in the cache.

  Carlini-Wagner, which costs most, attacks the first `cw_train` of those to
  train on.
  """
  if attack.startswith('cw'):
    first = sources.subset(clean['train'], slice(0, config.cw_train or None))
    clean = clean | {'train': first}
  key = stream(config, f'attack {attack}')
  made_from = {
    'attack': attack,
    'settings': attack_settings(config, attack),
    'victim': victim.identity,
    'pictures': {side: clean[side].fingerprint for side in SIDES},
    # Draws and targets of a picture go by its id.
    'source': [clean[side].source for side in SIDES],
    'key': key,
    'seed': config.seed,
  }

  def make(folder, work):
    joined = pipeline.concatenate(
      [pipeline.stored(clean[side]) for side in SIDES]
    )
    found = attacks.evaluate(
      attack_of(config, attack),
      key,
      victim.classifier,
      joined.images,
      joined.labels,
      joined.source,
      targets=np.concatenate([targets_of(config, clean[s]) for s in SIDES])
      if attack.endswith('_t')
      else None,
      batch_size=config.batch_size,
      num_slots=NUM_SLOTS if attack in MINIMAL else None,
      mesh=mesh(),
      resume_dir=work,
    )
    storage.write_npz(
      folder / 'attacked.npz',
      images=found.images_uint8,
      images_float=found.images[-len(clean['test'].labels) :],
      success=found.success,
      success_uint8=found.success_uint8,
      l2=found.l2,
      linf=found.linf,
    )

  version = storage.code_version(__name__)
  folder = cache.get_or_make('gcd_attacked', version, made_from, make)
  columns = storage.read_npz(folder / 'attacked.npz')
  exact = {'test': columns.pop('images_float')}
  ends = np.cumsum([len(clean[side].labels) for side in SIDES])[:-1]
  parts = {name: np.split(column, ends) for name, column in columns.items()}
  return {
    side: Attacked(
      **{name: part[i] for name, part in parts.items()},
      images_float=exact.get(side),
    )
    for i, side in enumerate(SIDES)
  }


def taught_rows(study: Study, attack: str, side: str) -> np.ndarray:
  """Picks the attacked pictures that a detector learns from, int[n].

  Those of a budget attack are all attacked, whether the victim errs or not. A
  minimal-norm attack without success leaves the clean picture, so others
  stand in; as many as there are clean pictures, so that nothing compiles
  twice and both classes weigh the same, but none if the attack never had
  success.
  """
  success = study.attacked[attack][side].success
  if attack not in MINIMAL:
    return np.arange(len(success))
  wanted = len(study.clean[side].labels) if success.any() else 0
  return np.resize(np.flatnonzero(success), wanted)


def can_teach(study: Study, attacks_taught: Sequence[str]) -> bool:
  """Tells whether each of the attacks has attacked pictures to learn from."""
  return all(
    len(taught_rows(study, attack, side))
    for attack in attacks_taught
    for side in ('train', 'valid')
  )


def teachable(study: Study) -> tuple[str, ...]:
  """Lists the attacks of the run that detectors can learn.

  Raises:
    DataError: If there is none.
  """
  found = tuple(a for a in study.config.attacks if can_teach(study, [a]))
  if not found:
    raise DataError(
      'no attack had success on the training pictures, so detectors have '
      'nothing to learn; give another --attacks'
    )
  return found


def detector_batches(
  study: Study, attacks_taught: Sequence[str], side: str
) -> pipeline.Batches:
  """Gives what a detector learns from: clean pictures and as many attacked.

  Args:
    study: The study.
    attacks_taught: Attacks to learn, which `can_teach`; of several each gives
      an equal share, every source picture being attacked by one of them.
    side: 'train' or 'valid'.

  Returns:
    Batches of fixed size.
  """
  clean = study.clean[side]
  parts = []
  for number, attack in enumerate(attacks_taught):
    rows = taught_rows(study, attack, side)[number :: len(attacks_taught)]
    parts.append(attacked_batch(study, attack, side, rows))
  everything = pipeline.concatenate([pipeline.stored(clean), *parts])
  return pipeline.batches(everything, BATCH)


def attacked_batch(
  study: Study, attack: str, side: str, rows: np.ndarray
) -> Batch:
  """Gives attacked pictures in the form in which sets are stored."""
  clean = pipeline.select(pipeline.stored(study.clean[side]), rows)
  columns: dict[str, Any] = {
    'images': study.attacked[attack][side].images[rows],
    'kind': np.full(
      len(rows), 1 + study.config.attacks.index(attack), np.int32
    ),
  }
  return clean._replace(**columns)


def fingerprints(study: Study) -> dict[str, str]:
  """Gives the hashes of data and weights, for the provenance."""
  return {
    'training pictures': study.train.fingerprint,
    'held-out pictures': study.heldout.fingerprint,
    'victim': study.victim.identity,
  }
