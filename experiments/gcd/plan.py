"""What a run would do, how long it would take, and what the cache holds."""

from __future__ import annotations

from pathlib import Path

from experiments.common import plan as planning
from experiments.common.options import cache_dir
from experiments.gcd.config import PAPER_NAME, Config
from experiments.gcd.pictures import (
  attacked_pictures,
  clean_pictures,
  load_pictures,
  victim_of,
)

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
  cache = planning.Lookup(cache_dir(config, workdir))
  train, heldout = load_pictures(config, cache)
  finished = len(list((Path(workdir) / 'cells').glob('*.npz')))
  attacked = config.num_train + config.num_valid + config.num_test
  lines = [
    f'data set:  {config.dataset}, {len(train.labels)} pictures to learn from, '
    f'{len(heldout.labels)} held out, {config.image_size}x{config.image_size} '
    f'pixels, {train.images.shape[-1]} channels',
    f'pictures:  {config.num_train} to train, {config.num_valid} to validate '
    f'and {config.num_test} to test detectors on, each attacked in '
    f'{len(config.attack_names)} ways',
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
    victim = victim_of(config, cache, train, heldout)
    clean = clean_pictures(config, victim, train, heldout)
    attacked_pictures(config, cache, attack, victim, clean)

  present = planning.present(lambda: victim_of(config, cache, train, heldout))
  epochs = len(train.labels) * config.victim_epochs
  show(f'victim {config.victim}', present, epochs * planning.PASSES)
  for attack in config.attack_names:
    present = planning.present(lambda attack=attack: find(attack))
    steps = _gradients(config, attack)
    count = attacked
    if attack.startswith('carlini_wagner') and config.cw_train:
      count -= max(config.num_train - config.cw_train, 0)
    show(PAPER_NAME[attack], present, count * steps * planning.PASSES)
  rows = 2 * config.num_train * config.detector_epochs * planning.PASSES
  seconds += cost(config.detector, rows * DETECTORS * len(config.attack_names))
  lines.append(
    f'time left: about {planning.duration(seconds)} on a 2-core CPU for '
    'pictures and detectors (rough; repairs, PixelCNN++ and the white box '
    'come on top), less on an accelerator'
  )
  return '\n'.join(lines)


def _gradients(config: Config, attack: str) -> int:
  """Counts the gradients of a picture, at most."""
  settings = config.attack_settings(attack)
  name = attack.removesuffix('_t')
  searches = settings.get('binary_search_steps', 1)
  known = {'fgsm': 1, 'deepfool': DEEPFOOL_GRADIENTS}
  return known.get(name) or searches * settings['num_steps']
