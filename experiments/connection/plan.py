"""What a run would do, how long it would take, and what the cache holds."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.common import plan as planning
from experiments.common.options import cache_dir
from experiments.connection import detectors, networks, pictures
from experiments.connection.config import Config, is_published
from experiments.connection.features import num_bytes
from jaxadv import models
from jaxadv.classifier import from_linen
from jaxadv.data.sources import Pictures
from jaxadv.models.names import parse_network
from jaxadv.models.pretrained import resized
from jaxadv.runs import Cell, shard_of
from jaxadv.training.frozen import Design, prefix_features, task

# To compile a network's training, a backbone's detectors, or two attacks.
COMPILING_SECONDS = 20
# Steps of a picture on average: DeepFool takes some three of ten gradients,
# HSV leaves after a third of its trials, with one forward pass each.
DEEPFOOL_STEPS = 30


def plan(config: Config, workdir: str) -> str:
  """Describes a run.

  Args:
    config: The config.
    workdir: Its folder.

  Returns:
    Lines for the terminal.

  Raises:
    UserError: If the data set or one of its splits cannot be had.
  """
  cost = functools.partial(_seconds, config)
  cache = planning.Lookup(cache_dir(config, workdir))
  train, heldout = pictures.load_pictures(config, cache)
  all_cells = detectors.cells(config)
  mine = shard_of(all_cells, config.shard)
  done = [
    cell
    for cell in all_cells
    if (Path(workdir) / 'cells' / f'{cell.name}.npz').exists()
  ]
  lines = [
    f'data set:  {config.dataset}, {len(train.labels)} pictures to learn from,'
    f' {len(heldout.labels)} held out, {config.image_size}x'
    f'{config.image_size} pixels',
    f'pictures:  {config.num_pictures} clean and {config.num_pictures} of each '
    f'of {len(config.attacks)} kinds, half to train detectors, half to test',
    f'cells:     {len(all_cells)} ({", ".join(c.name for c in all_cells)}); '
    f'{len(mine)} in this shard, {len(done)} finished',
    'cached:',
  ]

  def finder(network: str, trained_on: Pictures, epochs: int):
    return functools.partial(
      networks.network_of, config, cache, network, trained_on, heldout, epochs
    )

  trained_on = pictures.reference_pictures(config, train)
  count = config.backbone_pictures or len(train.labels)
  # Network, pictures seen in training, and how it is found, of each role.
  trained = {
    'victim': (
      config.victim,
      len(train.labels) * config.victim_epochs,
      finder(config.victim, train, config.victim_epochs),
    )
  } | {
    f'reference {name}': (
      name,
      len(trained_on.labels) * config.reference_epochs,
      finder(name, trained_on, config.reference_epochs),
    )
    for name in config.reference
  }
  trained |= {
    f'{name} seed {seed}': (
      name,
      count * config.backbone_epochs,
      functools.partial(
        networks.backbone, config, cache, name, train, heldout, seed
      ),
    )
    for name in config.backbones
    for seed in range(config.num_seeds)
  }
  seconds = 0.0
  for role, (network, seen, find) in trained.items():
    if is_published(config, network):
      continue
    present = planning.present(find)
    lines.append(f'  {role:<18} {"yes" if present else "no"}')
    if not present:
      seconds += cost(network, seen * planning.PASSES)
  forwards = [
    n for n in networks.networks_of(config) if is_published(config, n)
  ]
  if config.victim in forwards:
    # Which pictures it gets right, and so which are attacked, takes a pass
    # over all of them.
    present = False
    lines.append(f'  {"all pictures":<18} not known before the victim is asked')
  else:
    present = planning.present(
      lambda: pictures.collect(config, cache, train, heldout, lambda text: None)
    )
    lines.append(f'  {"all pictures":<18} {"yes" if present else "no"}')
  if not present:
    steps = 1 + 10 + DEEPFOOL_STEPS
    forward = steps * planning.PASSES + config.num_trials / 3
    seconds += 3 * COMPILING_SECONDS + cost(
      config.victim, config.num_pictures * forward
    )
    for network in forwards:
      seconds += cost(network, len(heldout.labels))
  todo = [cell for cell in mine if cell not in done]
  seconds += COMPILING_SECONDS * len({c.settings['network'] for c in todo})
  needs = {network: _needs(config, network) for network in config.backbones}
  for cell in todo:
    network = cell.settings['network']
    seconds += cost(network, _passes(config, cell, needs[network]))
  lines.append('memory:')
  lines += [_memory(config, network, found) for network, found in needs.items()]
  host = (
    train.images.nbytes
    + heldout.images.nbytes
    + _num_sets(config) * (config.num_pictures * 3 * config.image_size**2)
  )
  disk = sum(
    num_members(config) * needs[cell.settings['network']].parameters * 4
    for cell in mine
  )
  lines += [
    f'  host               {_gib(host)} of pictures',
    f'  cache              {_gib(disk)} of detectors on disk, and while a cell '
    'trains up to six times its share for checkpoints',
    f'time left: about {planning.duration(seconds)} on a 2-core CPU '
    '(rough), less on an accelerator',
  ]
  return '\n'.join(lines)


class Needs(NamedTuple):
  """What the detectors on a backbone need.

  Attributes:
    picture: Bytes of the features of one picture.
    parameters: Numbers that one detector trains and keeps.
  """

  picture: int
  parameters: int


def _needs(config: Config, network: str) -> Needs:
  name, width, _ = parse_network(network)
  size = parse_network(network).size_for(config.image_size)
  known = models.BACKBONES[name]
  trained = not is_published(config, network)
  module = models.build(
    name,
    num_classes=2,
    width=width,
    image_size=size,
    **(known.from_scratch if trained else {}),
  )
  variables = jax.eval_shape(
    lambda: models.init_variables(jax.random.key(0), module, size)
  )
  preprocess = resized(config.image_size, size, known.preprocess)
  classifier = from_linen(module, variables, preprocess=preprocess)
  design = Design(module, known.split, known.features)
  _, rest = models.split_variables(module, variables, design.frozen_until)
  suffix, _ = models.split_variables(module, rest, design.last_stage)
  features = jax.eval_shape(
    functools.partial(prefix_features, design),
    classifier,
    jnp.zeros((1, config.image_size, config.image_size, 3)),
  )
  data = {'suffix': suffix, 'features': features}
  kept = jax.eval_shape(
    lambda data: task(design, 1).init(jax.random.key(0), data, 0), data
  )
  return Needs(
    num_bytes(design, classifier, config.image_size, config.feature_dtype),
    sum(leaf.size for leaf in jax.tree.leaves(kept)),
  )


def _num_sets(config: Config) -> int:
  """Counts clean pictures, kinds, and the sets of controls."""
  return 1 + len(config.attacks) + len(pictures.controls_of(config))


def num_members(config: Config) -> int:
  """Counts the detectors of a cell: kinds, controls and shuffled labels."""
  return len(config.attacks) + len(pictures.controls_of(config)) + 1


def _fits(config: Config, needs: Needs) -> bool:
  pool = _num_sets(config) * config.num_pictures * needs.picture
  return pool <= config.feature_memory * 2**30


def _passes(config: Config, cell: Cell, needs: Needs) -> float:
  """Counts forward passes of a picture through a cell's backbone."""
  members, n = num_members(config), config.num_pictures
  # The suffix and head cost about a forward pass.
  rows = round(2 * n * detectors.SHARES[0])
  training = rows * config.detector_epochs * members * planning.PASSES
  if not _fits(config, needs):
    return training + members * n + _num_sets(config) * n / 2
  return training + _num_sets(config) * n * (cell.settings['seed'] == 0)


def _memory(config: Config, network: str, needs: Needs) -> str:
  """Says what a backbone's detectors take on the device."""
  n, members = config.num_pictures, num_members(config)
  pool = _num_sets(config) * n * needs.picture
  text = f'features {_gib(pool)} in {config.feature_dtype}'
  together = members
  if not _fits(config, needs):
    together = 1
    text += (
      f', more than --feature_memory={config.feature_memory:g}: one detector '
      f'after the other, {_gib(n * needs.picture)} each'
    )
  # All are kept; gradients and Adam's two moments only while they train.
  numbers = (members + 3 * together) * needs.parameters
  return (
    f'  {network:<18} {text}; {needs.parameters / 1e6:.1f} M parameters a '
    f'detector, {_gib(4 * numbers)} for {members} of them with the optimizer '
    f'of {together}'
  )


def _gib(count: float) -> str:
  gib = count / 2**30
  return f'{gib:.1f} GiB' if gib >= 0.95 else f'{count / 2**20:.1f} MiB'


def _seconds(config: Config, network: str, passes: float) -> float:
  return planning.seconds_of(network, config.image_size, passes)
