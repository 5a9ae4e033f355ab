"""Measures how robust a network is: attacks, curves, warnings, a report.

Takes a network from a file of weights, or trains a small one;
`jaxadv.evaluation.measure_robustness` takes any function.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common.data import load_sides, load_split, split_names
from experiments.common.networks import (
  find_weights,
  published_network,
  trained_network,
)
from experiments.common.options import (
  NETWORK,
  VARIANTS,
  Options,
  cache_dir,
  option,
  result_config,
)
from jaxadv import models, reports, storage
from jaxadv.attacks import Composite
from jaxadv.classifier import Classifier, Normalise
from jaxadv.data import imagenet, sources
from jaxadv.errors import UserError, check_choices
from jaxadv.evaluation import named, robustness
from jaxadv.evaluation.measuring import Subject, Work
from jaxadv.models.weights import published
from jaxadv.reports import tables
from jaxadv.runs import Cell, Progress, freed_if_refused, shard_of, stream
from jaxadv.storage import Cache


@dataclasses.dataclass(frozen=True)
class Config(Options):
  """With which attacks to measure, and on which network and pictures."""

  attacks: tuple[str, ...] = option(
    (),
    'Attacks, name or name:hyperparameter=value:...; --list shows the names; '
    'empty: those usual in the norm. More can be added to a finished workdir.',
  )
  norm: str = option(
    'linf',
    f'Of the budget: {", ".join(named.NORMS)}.',
    choices=named.NORMS,
  )
  epsilons: tuple[str, ...] = option(
    (),
    'Radii in image units, as 8/255 or 0.5; empty: the usual ones of the norm, '
    'which are for pictures of 32x32 pixels in L1.',
  )
  checks: bool = option(
    True, 'Whether to look for signs that attacks fail for the wrong reason.'
  )

  model: str = option('vgg11:0.25', 'Network, name:width:size.', kind=NETWORK)
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
  epochs: int = option(
    30, 'Epochs, where the network is trained.', within='[1, inf)'
  )
  dataset: str = option(
    'digits', 'TFDS name, folder of class folders, or .npz.'
  )
  split: str = option(
    '', 'Split to measure on, with --weights; empty: the held-out one.'
  )
  image_size: int = option(
    32, 'Side of the pictures, in pixels.', within='[1, inf)'
  )
  num_pictures: int = option(
    100,
    'Pictures to measure on, drawn at random; 0 for all.',
    within='[0, inf)',
  )

  def __post_init__(self) -> None:
    """Checks what can be checked before any work.

    Raises:
      UserError: Naming the option, its value and what is allowed.
    """
    super().__post_init__()
    work_of(self)
    for name in ('split', 'mean', 'std'):
      if getattr(self, name) and not self.weights:
        raise UserError(
          f'--{name} needs --weights; without them the network is trained, '
          'and measured on pictures that are held out'
        )
    preprocess_of(self)


def work_of(config: Config) -> Work:
  """Reads with what to measure.

  Raises:
    UserError: If an attack or a radius cannot be.
  """
  return robustness.work_of(
    [named.read_attack(text, config.norm) for text in config.attacks],
    config.norm,
    config.epsilons,
    checks=config.checks,
    seed=config.seed,
    batch_size=config.batch_size,
  )


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
  check_choices('--variant', [variant], VARIANTS)
  values: dict[str, Any] = {}
  if variant != 'quick':
    values = {'dataset': 'cifar10', 'model': 'vgg11:0.5', 'epochs': 7}
    values['num_pictures'] = 500
  if variant == 'paper':
    values |= {'num_pictures': 1000, 'attacks': ('auto_attack',)}
  if dataset:
    values['dataset'] = dataset
  return Config(variant=variant, **values)


def cells(config: Config) -> list[Cell]:
  """Lists the cells of a run: the checks, and one for each attack."""
  return robustness.cells(work_of(config))


def identity(config: Config) -> dict[str, Any]:
  """Gives what a workdir belongs to, besides pictures and weights."""
  about = result_config(config)
  del about['attacks'], about['checks']
  return about | robustness.identity(work_of(config))


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
  cache = Cache(cache_dir(config, workdir))
  train, heldout = load_pictures(config, cache)
  if config.weights:
    _, _, heldout = load_network(config, heldout)
    origin = f'weights {config.weights}'
  else:
    origin = (
      f'trained for {config.epochs} epochs on {len(train.labels)} pictures, '
      'unless it is in the cache'
    )
  pictures = limited(config, heldout)
  mine = [cell.name for cell in shard_of(cells(config), config.shard)]
  radii = work_of(config).radii
  lines = [
    f'network:   {config.model}, {origin}',
    f'data set:  {config.dataset}, {len(pictures.labels)} pictures of '
    f'{len(pictures.class_names)} classes, {config.image_size}x'
    f'{config.image_size} pixels',
    f'epsilons:  {", ".join(radii)} in {config.norm}',
    'cells:',
  ]
  for cell in cells(config):
    finished = robustness.cell_file(Path(workdir), cell).exists()
    other = 'to do' if cell.name in mine else 'of another shard'
    state = 'finished' if finished else other
    lines.append(f'  {cell.name:<24} {state:<16} {_work(cell, radii)}'.rstrip())
  return '\n'.join([*lines, f'results:   {workdir}'])


def _work(cell: Cell, radii: Mapping[str, float]) -> str:
  """Says how much an attack does at most; '' if that is not known before."""
  if cell.name == robustness.CHECKS:
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
  cache = Cache(cache_dir(config, workdir))
  train, heldout = load_pictures(config, cache)
  fingerprints = {}
  if config.weights:
    classifier, fingerprints['weights'], heldout = load_network(config, heldout)
  pictures = limited(config, heldout)
  fingerprints['pictures'] = pictures.fingerprint
  folder = storage.open_workdir(workdir, identity(config) | fingerprints)
  work = work_of(config)
  with (
    freed_if_refused(folder),
    Progress(1 + len(cells(config))) as progress,
  ):
    if not config.weights:
      progress.note(f'network {config.model}')
      trained = trained_network(
        # The key of the connection paper's victim, which is the same network.
        stream(config.seed, f'train {config.model}'),
        cache,
        config.model,
        train,
        heldout,
        config.epochs,
        config=config,
      )
      classifier = trained.classifier
      fingerprints['weights'] = trained.fingerprint
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
    measured, missing = robustness.measure_cells(
      work, subject, folder, progress, config.shard
    )
  if measured is None:
    print(f'this shard is done; still to do: {", ".join(missing)}')
    return None
  found = robustness.write_report(
    work,
    measured,
    folder,
    started,
    config=result_config(config),
    variant=config.variant,
    missing=missing,
  )
  print(found.answer)
  tables.print_table(found)
  print(f'\nreport: {folder / "report.html"}')
  return found


def load_pictures(
  config: Config, cache: Cache
) -> tuple[sources.Pictures, sources.Pictures]:
  """Loads the pictures to learn from, and those held out, in random order.

  With weights there is nothing to learn, and no more is read than is needed.

  Raises:
    UserError: If the data set, the split or so many pictures cannot be had,
      or an attack does not fit them.
  """
  if config.weights:
    split = config.split or split_names(config, cache)[1]
    drawn = {'limit': config.num_pictures or None, 'seed': config.seed}
    heldout = load_split(config, cache, config.dataset, split, **drawn)
    train = sources.subset(heldout, slice(0))
  else:
    train, heldout = load_sides(config, cache)
  if config.num_pictures > len(heldout.labels):
    raise UserError(
      f'--num_pictures is {config.num_pictures}, but {config.dataset} has '
      f'{len(heldout.labels)} held-out pictures; ask for at most so many, or '
      'for 0 to take all'
    )
  shape = heldout.images.shape[1:]
  robustness.check(work_of(config), shape, len(heldout.class_names))
  return train, heldout


def limited(config: Config, pictures: sources.Pictures) -> sources.Pictures:
  """Takes the pictures to measure on."""
  return sources.subset(pictures, slice(config.num_pictures or None))


def load_network(
  config: Config, pictures: sources.Pictures
) -> tuple[Classifier, str, sources.Pictures]:
  """Loads the network from its file of weights.

  Returns:
    The network, the fingerprint of its weights, and the pictures with labels
    that fit it.

  Raises:
    UserError: If the file is absent, does not fit the network, or has other
      classes than the pictures.
    DataError: If it is broken.
  """
  path = find_weights(config.model, config.image_size, config.weights)
  network = published_network(
    config.model,
    path,
    pictures,
    image_size=config.image_size,
    dataset=config.dataset,
    must_fit=False,
    preprocess=preprocess_of(config),
  )
  ids, count = imagenet.wnids(), network.module.num_classes
  if count == len(ids) and set(pictures.class_names) <= set(ids):
    pictures = imagenet.relabel(pictures)  # They may be of some classes only.
  published.check_classes(path, count, pictures.class_names, config.dataset)
  return network.classifier, network.fingerprint, pictures
