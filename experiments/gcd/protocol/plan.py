"""What a run would do, how long it would take, and what the cache holds."""

from __future__ import annotations

from pathlib import Path

from experiments import planning
from experiments.gcd.protocol import study as studies
from experiments.gcd.protocol.setting import PAPER_NAME, Config
from jaxadv import experiment

# To compile the training of a network or an attack.
COMPILING_SECONDS = 10
# Of its gradients that a minimal-norm attack spends before it is done.
DEEPFOOL_GRADIENTS = 30
# Networks of detectors that an attack gets: on pixels, gradients, saliency,
# each alone, pooled and without it.
DETECTORS = 8


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
  cache = planning.Lookup(experiment.cache_dir(config, workdir))
  train, heldout = studies.load_pictures(config, cache)
  finished = len(list((Path(workdir) / 'cells').glob('*.npz')))
  attacked = config.num_train + config.num_valid + config.num_test
  lines = [
    f'data set:  {config.dataset}, {len(train.labels)} pictures to learn from, '
    f'{len(heldout.labels)} held out, {config.image_size}x{config.image_size} '
    f'pixels, {train.images.shape[-1]} channels',
    f'pictures:  {config.num_train} to train, {config.num_valid} to validate '
    f'and {config.num_test} to test detectors on, each attacked in '
    f'{len(config.attacks)} ways',
    f'cells:     {finished} finished',
    'cached:',
  ]
  seconds = 0.0

  def cost(network: str, passes: float) -> float:
    return COMPILING_SECONDS + planning.seconds_of(
      network, config.image_size, passes
    )

  def show(piece: str, present: bool, passes: float) -> None:
    nonlocal seconds
    lines.append(f'  {piece:<18} {"yes" if present else "no"}')
    if not present:
      seconds += cost(config.victim, passes)

  def find(attack: str) -> None:
    victim = studies.trained_victim(config, cache, train, heldout)
    clean = studies.clean_pictures(config, victim, train, heldout)
    studies.attacked_pictures(config, cache, attack, victim, clean)

  present = planning.present(
    lambda: studies.trained_victim(config, cache, train, heldout)
  )
  epochs = len(train.labels) * config.victim_epochs
  show(f'victim {config.victim}', present, epochs * planning.PASSES)
  for attack in config.attacks:
    present = planning.present(lambda attack=attack: find(attack))
    steps = _gradients(config, attack)
    count = attacked
    if attack.startswith('cw') and config.cw_train:
      count -= max(config.num_train - config.cw_train, 0)
    show(PAPER_NAME[attack], present, count * steps * planning.PASSES)
  rows = 2 * config.num_train * config.detector_epochs * planning.PASSES
  seconds += cost(config.detector, rows * DETECTORS * len(config.attacks))
  lines.append(
    f'time left: about {planning.duration(seconds)} on a 2-core CPU for '
    'pictures and detectors (rough; repairs, PixelCNN++ and the white box '
    'come on top), less on an accelerator'
  )
  return '\n'.join(lines)


def _gradients(config: Config, attack: str) -> int:
  """Counts the gradients of a picture, at most."""
  return {
    'fgsm': 1,
    'pgd': config.pgd_steps,
    'deepfool': DEEPFOOL_GRADIENTS,
    'cw': config.cw_searches * config.cw_steps,
    'ddn': config.ddn_steps,
  }[attack.removesuffix('_t')]
