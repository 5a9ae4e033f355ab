"""Runs every experiment at another commit and here, and compares all rows.

For changes that are to move code and not results:

  python tests/guard.py COMMIT            # the quick variants
  python tests/guard.py COMMIT --tiny     # as small as in the tests
  python tests/guard.py COMMIT --inside=0.95   # where arithmetic changes

Both sides run on this machine, each from a cache of its own, since results
differ between machines and numbers of threads. What COMMIT gave is kept in
`--folder` and not run again. The exit code is 1 if a row is missing on either
side, or differs; with --inside, if fewer rows lie in each other's intervals.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENTS = {
  'unseen_transfer': 'TINY',
  'attack_supervision': 'TINY',
  'gcd_sensitivity': 'TINY_GCD',
  'gcd_salient_pixels': 'TINY_GCD',
  'gcd_greybox': 'TINY_GCD',
  'gcd_whitebox': 'TINY_GCD',
  'gcd_alpha': 'TINY_GCD',
  'gcd_recovery': 'TINY_GCD',
}
MEASURED = ('value', 'ci_low', 'ci_high', 'n', 'paper')
# Keys of rows, and values of them, that have another name here.
RENAMED: dict[str, str] = {'outlived': 'survives_rounding'}


def main() -> int:
  """Runs what is missing and prints how the rows agree."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('commit', help='what to compare with, such as main')
  parser.add_argument('--tiny', action='store_true', help='as in the tests')
  parser.add_argument(
    '--inside',
    type=float,
    help="share of the rows that have to lie in each other's intervals; "
    'default: all rows are equal',
  )
  parser.add_argument('--folder', type=pathlib.Path, default='runs/guard')
  parser.add_argument('--only', default='', help='experiments, by commas')
  given = parser.parse_args()
  names = given.only.split(',') if given.only else list(EXPERIMENTS)
  commit = git('rev-parse', '--short=12', given.commit)
  size = 'tiny' if given.tiny else 'quick'
  there = given.folder.resolve() / f'{size}-{commit}'
  tree = given.folder.resolve() / f'tree-{commit}'
  if not tree.exists():
    git('worktree', 'add', '--detach', str(tree), commit)
  here = given.folder.resolve() / f'{size}-here'
  shutil.rmtree(here, ignore_errors=True)
  failed = False
  for name in names:
    for root, folder in ((tree, there), (ROOT, here)):
      run(root, folder, name, given.tiny)
    rows = [read(folder / name) for folder in (there, here)]
    failed |= not agree(name, *rows, given.inside)
  return int(failed)


def git(*arguments: str) -> str:
  """Gives what git prints."""
  command = ['git', '-C', str(ROOT), *arguments]
  return subprocess.check_output(command, text=True).strip()


def run(root: pathlib.Path, folder: pathlib.Path, name: str, tiny: bool):
  """Runs an experiment of a source tree, unless its record is there."""
  if (folder / name / 'results.json').exists():
    return
  flags = []
  if tiny:
    sizes = f'conftest.{EXPERIMENTS[name]}'
    ask = f'from tests.experiments import conftest; print(*{sizes})'
    flags = subprocess.check_output(
      [sys.executable, '-c', ask], cwd=root, text=True
    ).split()
  command = [sys.executable, 'launch.py', f'--exp={name}', *flags]
  command += [f'--workdir={folder / name}', f'--cache_dir={folder / "cache"}']
  start = time.monotonic()
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / f'{name}.log', 'w') as log:
    subprocess.run(
      command,
      cwd=root,
      stdout=log,
      stderr=log,
      check=True,
      env=os.environ | {'PYTHONPATH': str(root)},
    )
  print(f'{folder.name} {name}: {time.monotonic() - start:.0f} s', flush=True)


def read(folder: pathlib.Path) -> dict[frozenset, dict[str, Any]]:
  """Reads the rows of a record by what they are rows of."""
  rows = json.loads((folder / 'results.json').read_text())['rows']
  new = lambda text: RENAMED.get(text, text)
  return {
    frozenset(
      (new(key), new(str(value)))
      for key, value in row.items()
      if key not in MEASURED
    ): {key: row.get(key) for key in MEASURED}
    for row in rows
  }


def agree(name: str, there: dict, here: dict, inside: float | None) -> bool:
  """Prints how the rows of two runs agree, and tells whether they do."""
  both = there.keys() & here.keys()
  differ = [p for p in both if not equal(there[p], here[p])]
  close = [p for p in both if mutual(there[p], here[p])]
  print(
    f'{name}: {len(both)} rows on both sides, {len(there) - len(both)} only '
    f'there, {len(here) - len(both)} only here, {len(differ)} differ, '
    f"{len(close)} in each other's intervals"
  )
  for place in [*(there.keys() ^ here.keys()), *differ][:5]:
    print(' ', dict(sorted(place)), there.get(place), here.get(place))
  whole = there.keys() == here.keys() and bool(both)
  if inside is None:
    return whole and not differ
  return whole and len(close) >= inside * len(both)


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
  """Tells whether two rows hold the same numbers, but for their last digits."""
  return all(
    a == b or (None not in (a, b) and math.isclose(a, b, rel_tol=1e-9))
    for a, b in zip(one.values(), other.values(), strict=True)
  )


def mutual(one: dict[str, Any], other: dict[str, Any]) -> bool:
  """Tells whether two values lie in each other's intervals, if they have."""
  if None in (one['ci_low'], other['ci_low']):
    return True
  return all(
    a['ci_low'] <= b['value'] <= a['ci_high']
    for a, b in ((one, other), (other, one))
  )


if __name__ == '__main__':
  sys.exit(main())
