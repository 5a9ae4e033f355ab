"""Measures how robust a classifier is: attacks, curves, warnings, a report.

`run` takes a network from a file of weights, or trains a small one; `measure`
takes any function from pictures to logits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from numpy.typing import ArrayLike

from experiments.tools.verification import measuring, named, record
from experiments.tools.verification.measuring import Subject, Work
from experiments.tools.verification.named import NamedAttack, Own
from jaxadv import experiment, models, reports, storage
from jaxadv.attacks import Composite
from jaxadv.attacks.inputs import attack_inputs, check_outputs
from jaxadv.classifier import Classifier, Normalise, as_classifier
from jaxadv.data import imagenet, sources
from jaxadv.data.known import may_mirror
from jaxadv.errors import UserError
from jaxadv.experiment import (
  Cell,
  Options,
  check_choices,
  check_options,
  freed_if_refused,
  option,
)
from jaxadv.models.names import parse_network
from jaxadv.models.pretrained import load_classifier
from jaxadv.models.weights import published
from jaxadv.reports import tables
from jaxadv.storage import Cache, fingerprint
from jaxadv.training.classifiers import cached_classifier
from jaxadv.training.mesh import all_devices

CHECKS = 'checks'
QUESTION = (
  'How many pictures does {} classify correctly when they are attacked?'
)


@dataclasses.dataclass(frozen=True)
class Settings(Options):
  """With which attacks to measure."""

  attacks: tuple[str, ...] = option(
    (),
    'Attacks, name or name:hyperparameter=value:...; --list shows the names; '
    'empty: those usual in the norm. More can be added to a finished workdir.',
  )
  norm: str = option('linf', f'Of the budget: {", ".join(named.NORMS)}.')
  epsilons: tuple[str, ...] = option(
    (),
    'Radii in image units, as 8/255 or 0.5; empty: the usual ones of the norm, '
    'which are for pictures of 32x32 pixels in L1.',
  )
  checks: bool = option(
    True, 'Whether to look for signs that attacks fail for the wrong reason.'
  )

  def __post_init__(self):
    """Checks what can be checked before any work.

    Raises:
      UserError: Naming the option, its value and what is allowed.
    """
    check_options(self)
    check_choices('--norm', [self.norm], named.NORMS)
    check_names(attacks_of(self))
    radii_of(self)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
  """Settings, and the network and pictures to measure on."""

  model: str = option('vgg11:0.25', 'Network, name:width:size.')
  weights: str = option(
    '',
    'Its weights: a file (.npz, .h5, .safetensors), a folder, or '
    f'{" or ".join(models.PUBLISHED)}; empty: train it.',
  )
  mean: tuple[str, ...] = option(
    (),
    'Mean of each channel in image units, for weights that expect another '
    "preprocessing than the network's published ones.",
  )
  std: tuple[str, ...] = option((), 'As --mean, what to divide by.')
  epochs: int = option(30, 'Epochs, where the network is trained.')
  dataset: str = option(
    'digits', 'TFDS name, folder of class folders, or .npz.'
  )
  split: str = option(
    '', 'Split to measure on, with --weights; empty: the held-out one.'
  )
  image_size: int = option(32, 'Side of the pictures, in pixels.')
  num_pictures: int = option(
    100, 'Pictures to measure on, drawn at random; 0 for all.'
  )

  def __post_init__(self):
    """Checks what can be checked before any work.

    Raises:
      UserError: Naming the option, its value and what is allowed.
    """
    super().__post_init__()
    check_choices('--variant', [self.variant], experiment.VARIANTS)
    for name, least in (('epochs', 1), ('image_size', 1), ('num_pictures', 0)):
      if getattr(self, name) < least:
        raise UserError(
          f'--{name} is {getattr(self, name)}; it must be {least} or more'
        )
    network = parse_network(self.model)
    models.build(
      network.name,
      num_classes=2,
      width=network.width,
      image_size=network.size_for(self.image_size),
    )
    for name in ('split', 'mean', 'std'):
      if getattr(self, name) and not self.weights:
        raise UserError(
          f'--{name} needs --weights; without them the network is trained, '
          'and measured on pictures that are held out'
        )
    preprocess_of(self)


def attacks_of(settings: Settings) -> list[NamedAttack]:
  """Reads the attacks of a run."""
  texts = settings.attacks or named.USUAL_ATTACKS[settings.norm]
  return [named.read_attack(text, settings.norm) for text in texts]


def check_names(attacks: Sequence[NamedAttack]) -> None:
  """Checks that every attack has a name of its own.

  Raises:
    UserError: Naming them, if not.
  """
  texts = [attack.text for attack in attacks]
  files = {attack.file_name for attack in attacks}
  if len(files) < len(attacks) or len(set(texts)) < len(texts):
    raise UserError(f'--attacks names one twice: {", ".join(texts)}')
  for reserved in (record.WORST, record.CHECK_PGD, CHECKS):
    if reserved in texts:
      raise UserError(
        f'an attack is called {reserved!r}, as a line of the report is; '
        'give it another name'
      )


def radii_of(settings: Settings) -> dict[str, float]:
  """Reads the epsilons of a run: the radii by what was written."""
  return named.read_epsilons(settings.epsilons, settings.norm)


def preprocess_of(config: Config) -> Normalise | None:
  """Reads --mean and --std; None for what published weights expect."""
  mean = named.read_numbers('--mean', config.mean)
  std = named.read_numbers('--std', config.std)
  if len(mean) != len(std) or len(mean) not in (0, 1, 3) or 0 in std:
    raise UserError(
      f'--mean has {len(mean)} numbers and --std {len(std)}; give both, one '
      'or three numbers, none of --std 0'
    )
  return Normalise(mean, std) if mean else None


def get_config(variant: str = 'quick', dataset: str = '') -> Config:
  """Gives the config of a variant.

  Args:
    variant: 'quick' (embedded digits and a network that is trained in a
      minute), 'small' (CIFAR-10) or 'paper' (AutoAttack on 1,000 pictures).
    dataset: The data set asked for; the variant's own if empty.

  Raises:
    UserError: If there is no such variant.
  """
  check_choices('--variant', [variant], experiment.VARIANTS)
  values: dict[str, Any] = {}
  if variant != 'quick':
    values = {'dataset': 'cifar10', 'model': 'vgg11:0.5', 'epochs': 7}
    values['num_pictures'] = 500
  if variant == 'paper':
    values |= {'num_pictures': 1000, 'attacks': ('auto_attack',)}
  if dataset:
    values['dataset'] = dataset
  return Config(variant=variant, **values)


def cells(config: Settings) -> list[Cell]:
  """Lists the cells of a run: the checks, and one for each attack."""
  return cells_of(config, attacks_of(config))


def cells_of(config: Settings, attacks: Sequence[NamedAttack]) -> list[Cell]:
  """Lists the checks, and a cell for each of these attacks."""
  return [Cell(CHECKS, {})] * config.checks + [
    Cell(attack.file_name, {'attack': attack}) for attack in attacks
  ]


def identity(settings: Settings) -> dict[str, Any]:
  """Gives what a workdir belongs to, besides pictures and weights.

  Attacks and checks are cells of their own, and more can be added.
  """
  about = experiment.result_config(settings)
  del about['attacks'], about['checks']
  epsilons = list(radii_of(settings).values())
  version = storage.code_version(measuring.__name__)
  return {'experiment': 'verify', 'code': version} | (
    about | {'epsilons': epsilons}
  )


def plan(config: Config, workdir: str) -> str:
  """Describes a run.

  Args:
    config: The config.
    workdir: Its folder.

  Returns:
    Lines for the terminal.

  Raises:
    UserError: If what was asked for cannot be.
    DataError: If data or weights are broken.
  """
  cache = Cache(experiment.cache_dir(config, workdir))
  train, heldout = load_pictures(config, cache)
  if config.weights:
    _, heldout = load_network(config, heldout)
    origin = f'weights {config.weights}'
  else:
    origin = (
      f'trained for {config.epochs} epochs on {len(train.labels)} pictures, '
      'unless it is in the cache'
    )
  pictures = limited(config, heldout)
  mine = [
    cell.name for cell in experiment.shard_of(cells(config), config.shard)
  ]
  radii = radii_of(config)
  lines = [
    f'network:   {config.model}, {origin}',
    f'data set:  {config.dataset}, {len(pictures.labels)} pictures of '
    f'{len(pictures.class_names)} classes, {config.image_size}x'
    f'{config.image_size} pixels',
    f'epsilons:  {", ".join(radii)} in {config.norm}',
    'cells:',
  ]
  for cell in cells(config):
    finished = cell_file(Path(workdir), cell).exists()
    other = 'to do' if cell.name in mine else 'of another shard'
    state = 'finished' if finished else other
    lines.append(f'  {cell.name:<24} {state:<16} {_work(cell, radii)}'.rstrip())
  return '\n'.join([*lines, f'results:   {workdir}'])


def _work(cell: Cell, radii: Mapping[str, float]) -> str:
  """Says how much an attack does at most; '' if that is not known before."""
  if cell.name == CHECKS:
    return ''
  attack = cell.settings['attack']
  built = attack.build(max(radii.values()))
  times = f'{len(radii)} epsilons x ' if attack.has_budget else ''
  if isinstance(built, Composite):
    return f'{times}several attacks on what withstands'
  return f'{times}at most {max(built.max_steps, 1)} steps a picture'


def run(config: Config, workdir: str) -> reports.Record | None:
  """Measures a network and writes the report.

  Args:
    config: The config.
    workdir: Folder of the results; a run of the same config is resumed, with
      other attacks too.

  Returns:
    The record, as written to results.json; None if other shards have to
    finish first.

  Raises:
    UserError: If what was asked for cannot be.
    DataError: If data or weights are broken, a logit is not finite, or memory
      or disk are full.
  """
  started = time.monotonic()
  cache = Cache(experiment.cache_dir(config, workdir))
  train, heldout = load_pictures(config, cache)
  fingerprints = {}
  if config.weights:
    classifier, heldout = load_network(config, heldout)
    parts = [classifier.variables, classifier.preprocess]
    fingerprints['weights'] = fingerprint(parts)
  pictures = limited(config, heldout)
  fingerprints['pictures'] = pictures.fingerprint
  folder = storage.open_workdir(workdir, identity(config) | fingerprints)
  attacks = attacks_of(config)
  with (
    freed_if_refused(folder),
    experiment.Progress(1 + len(cells(config))) as progress,
  ):
    if not config.weights:
      progress.note(f'network {config.model}')
      trained = cached_classifier(
        # The key of the connection paper's victim, which is the same network.
        experiment.stream(config.seed, f'train {config.model}'),
        cache,
        parse_network(config.model),
        train,
        heldout,
        config.epochs,
        image_size=config.image_size,
        flip=may_mirror(config.dataset),
        identity={'seed': config.seed},
        batch_size=config.batch_size,
        mesh=all_devices(),
      )
      classifier = trained.classifier
      fingerprints['weights'] = trained.identity
    progress.advance()
    subject = Subject(
      classifier,
      pictures.images,
      pictures.labels,
      pictures.source,
      pictures.class_names,
      f'{config.model} on {pictures.name}',
      fingerprints,
    )
    measured, missing = measure_cells(
      config, attacks, subject, folder, progress
    )
  if measured is None:
    print(f'this shard is done; still to do: {", ".join(missing)}')
    return None
  return report(config, measured, missing, folder, started)


def measure(
  classifier: Callable[..., jax.Array],
  images: ArrayLike,
  labels: ArrayLike,
  workdir: str,
  *,
  attacks: str | tuple[str, Own] | Sequence[str | tuple[str, Own]] = (),
  norm: str = Settings.norm,
  epsilons: str | float | Sequence[str | float] = (),
  checks: bool = True,
  class_names: Sequence[str] = (),
  name: str = 'the classifier',
  seed: int = 0,
  batch_size: int = 256,
) -> reports.Record:
  """Measures any function from pictures to logits and writes the report.

  Args:
    classifier: A `Classifier`, an NNX model, or a function that JAX can
      trace, from float32[B, H, W, C] in [0, 1] to logits [B, K].
    images: [N, H, W, C], uint8 or floating in [0, 1].
    labels: int[N], the true classes.
    workdir: Folder of the results; the same call resumes there, and so does
      one with other attacks: those that are finished are read.
    attacks: As `--attacks`: names of `jaxadv.attacks.ATTACKS`, perhaps with
      hyperparameters as in 'pgd:num_steps=40'; those usual in the norm if
      empty. An attack of yours is a pair ('name', attack): a function
      `epsilon -> Attack` if it has a budget, epsilon being traced, or an
      `Attack`, of which a success counts where its change is small enough. A
      single one need not be in a list.
    norm: 'linf', 'l2' or 'l1'.
    epsilons: Radii in image units, numbers or text such as '8/255', or a
      single one; those usual in the norm if empty. A number k / 255 is shown
      as such; text is shown as it is.
    checks: Whether to look for signs that attacks fail for the wrong reason.
    class_names: One a class, for the pictures of the report.
    name: What the classifier is, for the report.
    seed: Seed of all draws.
    batch_size: Pictures at a time.

  Returns:
    The record, as written to results.json.

  Raises:
    UserError: If what was asked for cannot be, or `workdir` belongs to
      something else.
    DataError: If a picture or a logit is not finite, or memory or disk are
      full.

  Example:
    >>> mine = lambda epsilon: pgd(linf_ball(epsilon), epsilon / 8, 100)
    >>> verify.measure(
    ...   my_logits, images, labels, 'runs/mine',
    ...   attacks=['apgd', ('my pgd', mine)],
    ... )
  """
  started = time.monotonic()
  with _without_dashes():
    check_choices('norm', [norm], named.NORMS)
    attack_list = [named.given_attack(each, norm) for each in _listed(attacks)]
    settings = Settings(
      attacks=tuple(each.text for each in attack_list if each.own is None),
      norm=norm,
      epsilons=tuple(map(named.write_epsilon, _listed(epsilons))),
      checks=checks,
      seed=seed,
      batch_size=batch_size,
    )
  attack_list = attack_list or attacks_of(settings)
  inputs = attack_inputs(images, labels)
  pictures, shape = inputs.images, inputs.images.shape[1:]
  classifier = as_classifier(classifier)
  outputs = check_outputs(classifier, jax.random.key(0), inputs).out_avals[0]
  with _without_dashes():
    check_names(attack_list)
    check(settings, attack_list, shape, outputs.shape[-1])
  attack_list = [
    named.with_program(attack, classifier, shape) for attack in attack_list
  ]
  fingerprints = {
    'pictures': fingerprint([pictures, inputs.labels]),
    'classifier': measuring.identity(classifier, pictures),
  }
  folder = storage.open_workdir(workdir, identity(settings) | fingerprints)
  subject = Subject(
    classifier,
    pictures,
    inputs.labels,
    inputs.source,
    tuple(class_names),
    name,
    fingerprints,
  )
  num_cells = len(cells_of(settings, attack_list))
  with freed_if_refused(folder), experiment.Progress(num_cells) as progress:
    measured, _ = measure_cells(
      settings, attack_list, subject, folder, progress
    )
  assert measured is not None  # There are no other shards.
  return report(settings, measured, [], folder, started)


def _listed(given: Any) -> list[Any]:
  """Makes a list of one of what is no list, or an attack with its name."""
  pair = isinstance(given, tuple) and len(given) == 2
  own = (
    pair
    and isinstance(given[0], str)
    and not isinstance(given[1], (str, tuple, list))
  )
  number = getattr(given, 'ndim', None) == 0  # An array, but nothing to list.
  if own or number or isinstance(given, str) or not isinstance(given, Iterable):
    return [given]
  return list(given)


@contextlib.contextmanager
def _without_dashes() -> Iterator[None]:
  """Names arguments in errors as a caller in Python does."""
  try:
    yield
  except UserError as error:
    raise UserError(re.sub(r'--(?=[a-z])', '', str(error))) from error


def load_pictures(
  config: Config, cache: Cache
) -> tuple[sources.Pictures, sources.Pictures]:
  """Loads the pictures to learn from, and those held out, in random order.

  With weights there is nothing to learn, and no more is read than is needed.

  Raises:
    UserError: If the data set, the split or so many pictures cannot be had,
      or an attack does not fit them.
  """
  folders: dict[str, Any] = dict(
    data_dir=experiment.data_dir(config.data_dir), cache_dir=cache.root
  )
  train_split, heldout_split = sources.usual_splits(
    sources.splits(config.dataset, **folders)
  )
  heldout_split = config.split or heldout_split
  options = folders | {'image_size': config.image_size}
  if config.weights:
    options |= {'limit': config.num_pictures or None, 'seed': config.seed}
    heldout = sources.load(config.dataset, heldout_split, **options)
    train = sources.subset(heldout, slice(0))
  else:
    heldout = sources.load(config.dataset, heldout_split, **options)
    heldout = sources.shuffled(heldout, config.seed)
    if train_split == heldout_split:
      train, heldout = sources.divide(heldout)
    else:
      train = sources.load(config.dataset, train_split, **options)
  if config.num_pictures > len(heldout.labels):
    raise UserError(
      f'--num_pictures is {config.num_pictures}, but {config.dataset} has '
      f'{len(heldout.labels)} held-out pictures; ask for at most so many, or '
      'for 0 to take all'
    )
  shape = heldout.images.shape[1:]
  check(config, attacks_of(config), shape, len(heldout.class_names))
  return train, heldout


def limited(config: Config, pictures: sources.Pictures) -> sources.Pictures:
  """Takes the pictures to measure on."""
  return sources.subset(pictures, slice(config.num_pictures or None))


def load_network(
  config: Config, pictures: sources.Pictures
) -> tuple[Classifier, sources.Pictures]:
  """Loads the network from its file of weights.

  Returns:
    The network, and the pictures with labels that fit it.

  Raises:
    UserError: If the file is absent, does not fit the network, or has other
      classes than the pictures.
    DataError: If it is broken.
  """
  network = parse_network(config.model)
  size = network.size_for(config.image_size)
  path = published.find(network.name, network.width, size, config.weights)
  count = published.num_classes(path)
  ids = imagenet.wnids()
  if count == len(ids) and set(pictures.class_names) <= set(ids):
    pictures = imagenet.relabel(pictures)  # They may be of some classes only.
  published.check_classes(path, count, pictures.class_names, config.dataset)
  _, classifier = load_classifier(
    network, config.image_size, path, preprocess_of(config)
  )
  return classifier, pictures


def check(
  settings: Settings,
  attacks: Sequence[NamedAttack],
  shape: tuple[int, ...],
  num_classes: int,
) -> None:
  """Checks that the attacks fit pictures and classes; computes nothing.

  Raises:
    UserError: Naming the attack that does not.
  """
  radii = list(radii_of(settings).values())
  named.check_attacks(attacks, radii, shape, num_classes)


def cell_file(folder: Path, cell: Cell) -> Path:
  """Names the file with the result of a cell."""
  suffix = 'json' if cell.name == CHECKS else 'npz'
  return folder / 'cells' / f'{cell.name}.{suffix}'


def measure_cells(
  settings: Settings,
  attacks: Sequence[NamedAttack],
  subject: Subject,
  folder: Path,
  progress: experiment.Progress,
) -> tuple[record.Measured | None, list[str]]:
  """Runs the cells of this shard and gathers those of all shards.

  Args:
    settings: How to measure.
    attacks: With what.
    subject: What to measure.
    folder: The workdir.
    progress: Shows which cell is under way.

  Returns:
    What was measured, None if no attack is finished; and the names of the
    cells that other shards still have to do.
  """
  radii = radii_of(settings)
  work = Work(
    list(radii.values()), settings.norm, settings.seed, settings.batch_size
  )
  every = cells_of(settings, attacks)
  mine = experiment.shard_of(every, settings.shard)
  outcomes, checked, missing = [], None, []
  for cell in every:
    path = cell_file(folder, cell)
    progress.note(cell.name)
    if cell not in mine and not path.exists():
      missing.append(cell.name)
    elif cell.name == CHECKS:
      checked = measuring.run_checks(work, subject, path)
    else:
      attack = cell.settings['attack']

      def note(done: int, total: int, name=cell.name) -> None:
        progress.note(name, done / total)

      outcome = measuring.run_attack(work, subject, attack, path, note)
      outcomes.append((attack, outcome))
    progress.advance()
  if not outcomes:
    return None, missing
  # The checks look at that themselves.
  doubts = [] if checked else measuring.doubts_about(work, subject)
  measured = record.Measured(
    subject, settings.norm, radii, outcomes, checked, doubts
  )
  return measured, missing


def report(
  settings: Settings,
  measured: record.Measured,
  missing: Sequence[str],
  folder: Path,
  started: float,
) -> reports.Record:
  """Writes the report, and prints its tables.

  Args:
    settings: With what was measured.
    measured: The results.
    missing: Names of the cells that other shards still have to do.
    folder: The workdir.
    started: `time.monotonic()` at the start of the run.

  Returns:
    The record.
  """
  found = reports.Record(
    experiment='verify',
    variant=settings.variant,
    config=experiment.result_config(settings)
    | {
      'attacks': [attack.text for attack, _ in measured.outcomes],
      'epsilons': list(measured.epsilons),
    },
    provenance=reports.provenance(
      seeds=[settings.seed],
      seconds=time.monotonic() - started,
      fingerprints=measured.subject.fingerprints,
    ),
    rows=tuple(record.rows(measured)),
    missing=tuple(f'cell {name}: run its shard' for name in missing),
    question=QUESTION.format(measured.subject.name),
    answer=record.answer(measured),
    tables=tuple(record.tables(measured)),
    figures=tuple(record.figures(measured)),
    warnings=tuple(record.warnings(measured)),
  )
  reports.write_report(found, record.arrays(measured), folder)
  print(found.answer)
  tables.print_table(found)
  print(f'\nreport: {folder / "report.html"}')
  return found
