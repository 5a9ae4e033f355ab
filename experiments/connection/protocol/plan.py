"""What a run would do, how long it would take, and what the cache holds."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.connection.protocol import study, units
from experiments.connection.protocol.setting import Config, parse_network
from jaxadv import experiment, models
from jaxadv.storage import Cache

# Sustained on a 2-core CPU in training these networks; a rough guide.
FLOPS_PER_SECOND = 1e11
# To compile a network's training, a backbone's detectors, or two attacks.
COMPILING_SECONDS = 20
# A training step costs about three forward passes, an attack's step as much.
PASSES = 3
# Steps of a picture on average: DeepFool takes some three of ten gradients,
# HSV leaves after a third of its trials, with one forward pass each.
DEEPFOOL_STEPS = 30


class Absent(Exception):
  """A piece is not in the cache."""


class Lookup(Cache):
  """A cache that finds pieces and makes none."""

  def get_or_make(self, unit, version, config, make):
    """Gives the folder of a piece, or raises `Absent`."""
    del make
    path = self.entry(unit, version, config)
    if not path.is_dir():
      raise Absent(unit)
    return path


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
  cache = Lookup(experiment.cache_dir(config, workdir))
  train, heldout = units.load_pictures(config, cache)
  all_cells = study.cells(config)
  mine = experiment.shard_of(all_cells, config.shard)
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
  networks = {
    'victim': (config.victim, train, config.victim_epochs),
    'reference': (
      config.reference,
      units.reference_pictures(config, train),
      config.reference_epochs,
    ),
  } | {
    network: (network, train, config.backbone_epochs)
    for network in config.backbones
    if not units.weight_file(config, parse_network(network)[0])
  }
  seconds = 0.0
  for role, (network, taught, epochs) in networks.items():
    find = functools.partial(
      units.trained_network, config, cache, network, taught, heldout, epochs
    )
    present = _present(find)
    lines.append(f'  {role:<18} {"yes" if present else "no"}')
    if not present:
      seconds += _seconds(config, network, len(taught.labels) * epochs * PASSES)
  present = _present(
    lambda: units.collect(config, cache, train, heldout, lambda text: None)
  )
  lines.append(f'  {"all pictures":<18} {"yes" if present else "no"}')
  if not present:
    steps = 1 + 10 + DEEPFOOL_STEPS
    forward = steps * PASSES + config.num_trials / 3
    seconds += 3 * COMPILING_SECONDS + _seconds(
      config, config.victim, config.num_pictures * forward
    )
  rows = round(2 * config.num_pictures * (study.SHARES[0]))
  seconds += COMPILING_SECONDS * len(
    {cell.settings['network'] for cell in mine if cell not in done}
  )
  for cell in mine:
    if cell not in done:
      network = cell.settings['network']
      # Kinds, controls; the suffix and head cost about a forward pass.
      members = len(config.attacks) + 4
      seconds += _seconds(
        config, network, rows * config.detector_epochs * members * PASSES
      )
  lines.append(
    f'time left: about {max(1, round(seconds / 60))} minutes on a 2-core CPU '
    '(rough), less on an accelerator'
  )
  return '\n'.join(lines)


def _present(find) -> bool:
  try:
    find()
  except Absent:
    return False
  return True


def _seconds(config: Config, network: str, passes: float) -> float:
  """Estimates the time of forward passes of a picture."""
  name, width = parse_network(network)
  module = models.build(
    name, num_classes=10, width=width, image_size=config.image_size
  )
  variables = jax.eval_shape(
    lambda: models.init_variables(jax.random.key(0), module, config.image_size)
  )
  image = jnp.zeros((1, config.image_size, config.image_size, 3))
  lowered = jax.jit(module.apply).lower(variables, image)
  cost = lowered.cost_analysis() or {'flops': 0.0}
  return passes * cost['flops'] / FLOPS_PER_SECOND
