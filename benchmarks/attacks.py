"""Speed and strength of attacks: jaxadv against the other libraries.

`python -m benchmarks.attacks --attack=fgsm,pgd --n=64` prints a table for
each attack. All libraries get the same pictures and the same weights, are
timed in turn in one process, and are judged by one function. What the columns
mean and how to install the others is told in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import shlex
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks import nets, peers
from benchmarks.compare import OURS, Limits, Row, Setting, Subject, compare
from jaxadv.errors import UserError
from jaxadv.training import data_mesh
from jaxadv.units import to_float
from jaxadv.utils import keep_freed_memory


def _settings(epsilon: float) -> dict[str, Setting]:
  steps = lambda hyper: hyper['num_steps']
  pgd = {'epsilon': epsilon, 'step_size': epsilon / 4, 'num_steps': 40}
  cw = {
    'num_steps': 200,
    'binary_search_steps': 9,
    'initial_const': 1e-3,
    'learning_rate': 0.01,
  }
  return {
    'fgsm': Setting('fgsm', {'epsilon': epsilon}, lambda _: 1, budget=True),
    'pgd': Setting('pgd', pgd, steps, budget=True),
    'pgd_early': Setting(
      'pgd',
      pgd | {'early_stop': True},
      budget=True,
      slots=True,
    ),
    'deepfool': Setting('deepfool', {'num_steps': 50}, slots=True),
    'ddn': Setting(
      'ddn', {'num_steps': 100, 'init_norm': 1.0, 'gamma': 0.05}, steps
    ),
    'ddn_float': Setting(
      'ddn',
      {'num_steps': 100, 'init_norm': 1.0, 'gamma': 0.05, 'levels': None},
      steps,
    ),
    'cw': Setting(
      'carlini_wagner',
      cw | {'abort_early': False},
      lambda hyper: hyper['num_steps'] * hyper['binary_search_steps'],
    ),
    'cw_early': Setting(
      'carlini_wagner', cw | {'abort_early': True}, slots=True
    ),
    'auto_attack': Setting(
      'auto_attack',
      {'epsilon': epsilon},
      budget=True,
      slots=True,
      waiting=False,
      all_pictures=True,
    ),
  }


_COLUMNS = (
  'library',
  'pictures/s',
  "jaxadv's speed-up",
  'x limit',
  'x own limit',
  'x own cost',
  'success',
  'median L2',
  'median Linf',
  'over epsilon',
  'outside box',
  'forward',
  'gradients',
  'compile s',
  'turns',
)


def table(
  attack: str,
  setting: Setting,
  rows: list[Row],
  limits: dict[str, Limits],
  num_pictures: int,
) -> str:
  """Lays rows out in markdown; benchmarks/README.md explains the columns."""
  ours = next((row.seconds for row in rows if row.name == OURS), math.nan)
  steps = setting.num_gradients and setting.num_gradients(setting.hyper)

  def cells(row: Row) -> list[str]:
    if row.reason:
      return [row.name, row.reason] + [''] * (len(_COLUMNS) - 2)
    assert row.judged is not None
    own = limits['jax' if row.name.startswith(OURS) else 'torch']
    passes, judged = row.passes, row.judged
    cost = passes and own.cost(passes.forward, passes.backward) / num_pictures
    times = lambda limit: f'{row.seconds / limit:.2f}' if limit else ''
    each = lambda n: f'{n / num_pictures:.1f}'
    compile_s, rate = row.seconds_to_compile, num_pictures / row.seconds
    return [
      row.name,
      f'{rate:,.0f}' if rate >= 100 else f'{rate:.1f}',
      '' if math.isnan(ours) else f'{row.seconds / ours:.2f}',
      times(steps and steps * limits['jax'].gradient),
      times(steps and steps * own.gradient),
      times(cost),
      f'{judged.success:.3f}',
      f'{judged.l2:.4f}',
      f'{judged.linf:.4f}',
      f'{judged.over_epsilon:.1e}' if setting.budget else '',
      f'{judged.outside_box:.1e}',
      each(passes.forward) if passes else '',
      each(passes.backward) if passes else '',
      '' if compile_s is None else f'{compile_s:.1f}',
      str(row.turns),
    ]

  lines = [_COLUMNS, ['---'] + ['---:'] * (len(_COLUMNS) - 1)]
  lines += [cells(row) for row in rows]
  text = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
  hyper = ', '.join(
    f'{key} {format(value, ".4g") if type(value) in (int, float) else value}'
    for key, value in setting.hyper.items()
  )
  notes = [
    f'- {row.name}: {peers.DIFFERENCES[row.name][attack]}.'
    for row in rows
    if attack in peers.DIFFERENCES.get(row.name, {}) and not row.reason
  ]
  notes += [
    f'- Once over all pictures in {framework}: forward '
    f'{1e3 * limit.forward:.1f} ms, gradient {1e3 * limit.gradient:.1f} ms '
    f'({limit.flops / limit.gradient / 1e12:.3g} TFLOP/s).'
    for framework, limit in limits.items()
  ]
  return '\n'.join([f'### {attack} ({hyper})', '', text, '', *notes, ''])


# Passes of a picture that survives the whole part: forward, gradients.
_PARTS = {
  'apgd-ce': (101, 101),
  'apgd-t': (9 * 101, 9 * 101),
  'fab-t': (9 * 200, 9 * 100),
  'square': (5001, 0),
}


def cost_model(
  rows: list[Row],
  limits: dict[str, Limits],
  parts: dict[str, float],
  num_pictures: int,
) -> str:
  """Tells robust accuracy, and what the parts cost those that they leave.

  The model multiplies the survivors of each part, as pyautoattack found them,
  by the part's passes: at least so much is due whatever the library, since
  pictures that fall pay less than a whole part.
  """
  lines = [
    f'- {row.name}: robust accuracy {100 * (1 - row.judged.success):.1f} %, '
    f'{row.seconds:.1f} s'
    for row in rows
    if row.judged
  ]
  if parts:
    forward = backward = 0.0
    for part, share in parts.items():
      passes = _PARTS.get(part, (1, 0))
      survivors = num_pictures * share / 100
      forward += survivors * passes[0]
      backward += survivors * passes[1]
    shares = ', '.join(f'{part} {share:g} %' for part, share in parts.items())
    lines.append(f'- Robust after each part of pyautoattack: {shares}')
    lines += [
      f'- Survivors times steps: {forward:.3g} forward passes and '
      f'{backward:.3g} gradients, in {framework} at the bare speeds '
      f'{limit.cost(forward, backward) / num_pictures:.1f} s'
      for framework, limit in limits.items()
    ]
  return '\n'.join([*lines, ''])


def _versions(libraries: list[str]) -> str:
  packages = ['jax', 'jaxlib']
  theirs = [peers.PACKAGES[name][0] for name in libraries if name != OURS]
  if theirs:
    packages += ['torch', *theirs]
  found = []
  for package in packages:
    try:
      found.append(f'{package} {importlib.metadata.version(package)}')
    except importlib.metadata.PackageNotFoundError:
      found.append(f'{package} not installed')
  return ', '.join([f'Python {platform.python_version()}', *found])


def _subject(flags: argparse.Namespace, in_torch: bool) -> Subject:
  """Trains or reads the net; the pictures are all that were held out."""
  pictures = nets.load(flags.dataset, flags.cache_dir)
  classifier = nets.trained(
    flags.model,
    pictures,
    num_steps=flags.train_steps,
    epsilon=flags.epsilon if flags.adversarial else None,
    cache_dir=flags.cache_dir,
  )
  images = np.asarray(to_float(pictures.images))
  gpu = jax.default_backend() == 'gpu'
  device = 'cuda' if gpu else 'cpu'
  twin = None
  if in_torch:
    import torch

    torch.set_num_threads(flags.threads)
    twin = nets.torch_twin(classifier, images[:16], device)
  return Subject(classifier, twin, device, images, pictures.labels)


def _chosen(subject: Subject, n: int, all_pictures: bool) -> Subject:
  """Takes the first n pictures, or the first n that are classified rightly."""
  rows = np.arange(len(subject.labels))[: None if all_pictures else 8 * n]
  if not all_pictures:
    right = [
      subject.predict(subject.images[rows], in_torch) == subject.labels[rows]
      for in_torch in (False, True)
      if not in_torch or subject.twin is not None
    ]
    rows = rows[np.all(right, axis=0)]
  rows = rows[:n]
  if len(rows) < n:
    raise UserError(
      f'--n is {n} but only {len(rows)} held-out pictures are '
      f'{"there" if all_pictures else "classified correctly"}; ask for fewer '
      'or train longer (--train_steps)'
    )
  return subject._replace(
    images=subject.images[rows], labels=subject.labels[rows]
  )


def _flags(arguments: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.attacks', description=__doc__
  )
  known = [OURS, *peers.LIBRARIES]
  add = parser.add_argument
  add('--lib', default=','.join(known), help=f'of {", ".join(known)}')
  add(
    '--attack',
    default='fgsm,pgd,pgd_early,deepfool,ddn,cw,cw_early',
    help=f'of {", ".join(_settings(1.0))}',
  )
  add(
    '--model',
    default='small_cnn',
    help='small_cnn, vgg11, vgg13, vgg16 or vgg19, with :WIDTH if wanted',
  )
  add('--dataset', default='digits', help='digits, mnist, cifar10, a folder')
  add('--n', type=int, default=64, help='pictures')
  add(
    '--batch_size',
    type=int,
    help='pictures at a time; default all (auto_attack: 250, as pyautoattack '
    'has it, if n is a multiple). Slots take all',
  )
  add('--epsilon', type=float, default=8 / 255, help='of budget attacks, Linf')
  add(
    '--num_steps', type=int, help='of every attack that has steps, for a trial'
  )
  add(
    '--adversarial',
    action='store_true',
    help='train the net on PGD pictures of --epsilon',
  )
  add('--train_steps', type=int, default=2000, help='of 64 pictures')
  add('--slots', type=int, default=32, help='of jaxadv; 0 for none')
  add('--repeats', type=int, default=5, help='turns of each candidate')
  add(
    '--limit_s',
    type=float,
    default=120,
    help='seconds for all turns of a candidate; it gets fewer turns if slower',
  )
  add(
    '--count',
    action=argparse.BooleanOptionalAction,
    default=True,
    help='count the passes of jaxadv, in a run more',
  )
  add('--threads', type=int, default=_cores(), help='of PyTorch')
  add(
    '--devices',
    type=int,
    help='of JAX, each with its share of the pictures; default one GPU, or '
    'every core of the CPU as a device',
  )
  add('--cache_dir', help="of weights; default in the user's cache folder")
  add('--out', help='file to which the tables are appended, in markdown')
  flags = parser.parse_args(arguments)
  flags.lib, flags.attack = flags.lib.split(','), flags.attack.split(',')
  for name, given, allowed in (
    ('--lib', flags.lib, known),
    ('--attack', flags.attack, list(_settings(1.0))),
  ):
    unknown = [value for value in given if value not in allowed]
    if unknown:
      parser.error(
        f'{name} holds {", ".join(unknown)}; give any of {", ".join(allowed)}'
      )
  for name in ('n', 'train_steps', 'repeats', 'threads'):
    if getattr(flags, name) < 1:
      parser.error(f'--{name} is {getattr(flags, name)}; give at least 1')
  if flags.batch_size and flags.n % flags.batch_size:
    parser.error(f'--n is {flags.n}; give a multiple of --batch_size')
  return flags


def _cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _mesh(devices: int | None) -> Mesh:
  """Devices for ours; XLA alone would leave much of a second core idle."""
  with contextlib.suppress(RuntimeError):  # Somebody has computed already.
    jax.config.update('jax_num_cpu_devices', devices or _cores())
  if devices is None:
    devices = _cores() if jax.default_backend() == 'cpu' else 1
  return data_mesh(jax.devices()[:devices])


def _command(arguments: list[str]) -> str:
  """The command again, without folders and files of this machine."""
  local = ('--cache_dir', '--out')
  kept: list[str] = []
  skip = False
  for argument in arguments:
    if not skip and not argument.startswith(local):
      kept.append(argument)
    skip = argument in local
  return shlex.join(['python', '-m', 'benchmarks.attacks', *kept])


def main(arguments: list[str] | None = None) -> None:
  flags = _flags(arguments)
  keep_freed_memory()
  mesh = _mesh(flags.devices)
  in_torch = any(name != OURS for name in flags.lib)
  absent = in_torch and importlib.util.find_spec('torch') is None
  sections: list[str] = []

  def show(text: str) -> None:
    print(text, flush=True)
    sections.append(text)

  try:
    everything = _subject(flags, in_torch and not absent)
    device = f'{mesh.size} x {jax.devices()[0].device_kind}'
    clean = np.mean(
      everything.predict(everything.images, False) == everything.labels
    )
    given = sys.argv[1:] if arguments is None else arguments
    show(
      f'## {flags.model} on {flags.dataset}'
      f'{", trained adversarially" if flags.adversarial else ""}, '
      f'{flags.n} pictures\n\n'
      f'```bash\n{_command(given)}\n```\n\n'
      f'{_versions(flags.lib)}; {platform.machine()}, {_cores()} cores, '
      f'devices {device}; clean accuracy {100 * clean:.1f} % of '
      f'{len(everything.labels)} held-out pictures.\n'
    )
    for attack in flags.attack:
      setting = _settings(flags.epsilon)[attack]
      if flags.num_steps and 'num_steps' in setting.hyper:
        setting.hyper['num_steps'] = flags.num_steps
      in_250s = setting.all_pictures and flags.n % 250 == 0
      rows, limits, parts = compare(
        attack,
        setting,
        _chosen(everything, flags.n, setting.all_pictures),
        flags.lib,
        batch_size=flags.batch_size or (250 if in_250s else flags.n),
        num_slots=flags.slots or None,
        repeats=flags.repeats,
        limit_s=flags.limit_s,
        count=flags.count,
        mesh=mesh,
      )
      show(table(attack, setting, rows, limits, flags.n))
      if attack == 'auto_attack':
        show(cost_model(rows, limits, parts, flags.n))
  except UserError as error:
    print(f'{error}', file=sys.stderr)
    sys.exit(2)
  finally:
    if flags.out and sections:
      with open(flags.out, 'a', encoding='utf-8') as file:
        file.write('\n' + '\n'.join(sections))


if __name__ == '__main__':
  # Seconds to compile shall be those of a first run.
  jax.config.update('jax_enable_compilation_cache', False)
  main()
