"""Table 1: does blackening the pixels that a detector minds undo an attack?"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from experiments.common.runner import CellCode, ReportParts
from experiments.common.tables import ACCURACY, RATE
from experiments.gcd import detectors, repair, report
from experiments.gcd.config import (
  MINIMAL,
  PAPER_NAME,
  Config,
  get_config,
)
from experiments.gcd.pictures import RunInputs, stream
from experiments.gcd.plan import plan
from experiments.gcd.run import run_gcd
from jaxadv.classifier import predict
from jaxadv.data.batching import map_batches
from jaxadv.defences import rectifier
from jaxadv.errors import UserError
from jaxadv.inputs import as_float
from jaxadv.metrics.estimates import Estimate, share_estimate
from jaxadv.metrics.intervals import mean_interval
from jaxadv.reports import Claim, Plot, Record, Row, Table, share_rows
from jaxadv.reports.verdicts import Comparison, judge
from jaxadv.runs import Cell
from jaxadv.types import picture_keys
from jaxadv.units import to_uint8

__all__ = ['cells', 'get_config', 'plan', 'run']

QUESTION = (
  'Does blackening the few pixels that a detector minds most undo an attack, '
  'and more so than blackening others?'
)
# Of the paper's Table 1, and Linf attacks for contrast.
UNTARGETED = ('deepfool', 'carlini_wagner', 'ddn', 'pgd', 'fgsm')
DETECTORS = {'is': 'DET_IS', 'org': 'DET_org'}
PIXELS = DETECTORS | {
  'random': 'random',
  'lit': 'random lit',
  'change': 'largest change',
}
FRACTIONS = (0.05, 0.1)
# Pictures as the attack left them, and rounded.
EXACT, ROUNDED = 'float', '8 bit'
# Clean accuracy (%) below which blackening itself is said to do harm.
KEEPS = 95.0
BLACKENED = 'pixels that were not black yet (%)'


def cells(config: Config) -> list[Cell]:
  """Lists the cells of a run: every untargeted attack."""
  return [
    Cell(attack, {'attack': attack})
    for attack in UNTARGETED
    if attack in config.attack_names
  ]


def run(config: Config, workdir: str) -> Record | None:
  """Runs the experiment and writes its report; see `run_gcd`.

  Raises:
    UserError: As `run_gcd`, or if no attack is untargeted.
  """
  if not cells(config):
    raise UserError(
      f'--attacks is {",".join(config.attack_names)!r}; gcd_salient_pixels '
      f'needs one or more of {", ".join(UNTARGETED)}'
    )
  return run_gcd(
    config,
    workdir,
    name='gcd_salient_pixels',
    question=QUESTION,
    cells=cells(config),
    code=CellCode(run_cell),
    describe=describe,
  )


def run_cell(
  inputs: RunInputs, cell: Cell, report_progress
) -> dict[str, np.ndarray]:
  """Blackens pixels of the pictures that an attack changed with success.

  The clean versions are treated alike.

  Returns:
    'rows' and '8 bit/rows', int[n], which test pictures those are, before and
    after rounding; and, for every way to pick pixels and every fraction,
    'NAME/FRACTION/VERSION/labels', int[n], of the attacked pictures as the
    attack left them ('float'), of those that still succeed after rounding
    ('8 bit') and of the 'clean' ones of the former; '.../pixels', bool[n, H,
    W], that were picked. After S trainings of a detector int[S, n] and
    bool[S, n, H, W].
  """
  attacked = inputs.attacked[cell.name]['test']
  found = {
    'rows': np.flatnonzero(attacked.success_float),
    f'{ROUNDED}/rows': np.flatnonzero(attacked.success),
  }
  clean = inputs.clean['test']
  versions = {
    EXACT: (found['rows'], repair.exact_images(inputs, cell.name)),
    ROUNDED: (found[f'{ROUNDED}/rows'], attacked.images),
    'clean': (found['rows'], clean.images),
  }
  for name in PIXELS:
    for version, (rows, pictures) in versions.items():
      if not len(rows):
        continue
      report_progress(f'{PAPER_NAME[cell.name]}, pixels by {PIXELS[name]}', 0.0)
      images, source = as_float(pictures[rows]), clean.source[rows]
      changes = as_float(attacked.images[rows]) - as_float(clean.images[rows])
      for fraction in FRACTIONS:
        each = [
          blacken(images, size, fraction)
          for size in sizes(inputs, name, images, changes, source)
        ]
        parts = {
          'pixels': [pixels for pixels, _ in each],
          'labels': [
            predict(inputs.victim.classifier, blackened, repair.ROWS).argmax(-1)
            for _, blackened in each
          ],
        }
        for part, arrays in parts.items():
          found[f'{name}/{fraction:g}/{version}/{part}'] = (
            np.stack(arrays) if name in DETECTORS else arrays[0]
          )
  return found


def sizes(inputs, name, images, changes, source) -> list[np.ndarray]:
  """Gives float32[n, H, W, C]; pixels with large values are blackened first.

  Args:
    inputs: The inputs of the run.
    name: One of `PIXELS`.
    images: float32[n, H, W, C], the pictures to blacken.
    changes: What the attack did to them.
    source: int[n], their ids; random pixels go by it.

  Returns:
    One for each training of a detector, one of everything else.
  """
  if name in DETECTORS:
    return [
      repair.logits_and_gradients(
        repair.pooled_score(inputs, name, seed), images
      ).gradient
      for seed in range(inputs.config.num_seeds)
    ]
  if name == 'change':
    return [changes]
  keys = picture_keys(stream(inputs.config, 'random pixels'), source)
  drawn = map_batches(_drawn, keys, images, batch_size=repair.ROWS)
  # A black pixel comes after all others; of 8 bit, since an attack leaves
  # hardly any that is exactly 0.
  lit = to_uint8(images).any(-1, keepdims=True)
  return [drawn + lit if name == 'lit' else drawn]


@jax.jit
def _drawn(keys, images):
  shape = (*images.shape[1:3], 1)
  return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


@jax.jit
def _blacken(fraction, images, size):
  pixels = rectifier.salient_pixels(
    repair.standing_in(size), images, fraction, mask_rule='fraction'
  )
  return pixels, rectifier.zeroed(images, pixels)


def blacken(
  images: np.ndarray, size: np.ndarray, fraction: float
) -> tuple[np.ndarray, np.ndarray]:
  """Blackens the share of the pixels that have the largest |size|.

  Args:
    images: float32[n, H, W, C].
    size: float32[n, H, W, C or 1], added up over channels.
    fraction: In [0, 1].

  Returns:
    bool[n, H, W], which pixels; and the pictures, float32.
  """
  size = np.broadcast_to(size, images.shape)
  return map_batches(
    functools.partial(_blacken, np.float32(fraction)),
    images,
    size,
    batch_size=repair.ROWS,
  )


def describe(inputs: RunInputs, found: dict[str, Any]) -> ReportParts:
  """Says what blackening did."""
  attacks = [a for a in found if len(found[a]['rows'])]
  left: dict[str, dict[Any, Estimate]] = {EXACT: {}, ROUNDED: {}}
  cells: dict[str, list[tuple[dict[str, Any], Estimate, int]]] = {
    EXACT: [],
    ROUNDED: [],
    'clean': [],
  }
  blackened = []
  truth, source = inputs.clean['test'].labels, inputs.clean['test'].source
  printed = report.printed('table1') if report.paper_dataset(inputs) else {}

  def paper(name: str, share: str, attack: str) -> float | None:
    own = name in ('none', 'is')
    return printed.get((share, PAPER_NAME[attack])) if own else None

  for attack in attacks:
    own = found[attack]
    for version in cells:
      rows = own[f'{ROUNDED}/rows' if version == ROUNDED else 'rows']
      if not len(rows):
        continue
      ids, n = source[rows], len(rows)
      keys = {'attack': PAPER_NAME[attack], 'role': version}
      if version != 'clean':
        estimate = share_estimate(
          np.ones(n, bool), ids, paper('none', '0 %', attack)
        )
        none = {'pixels': 'none', 'blackened': '0 %'}
        cells[version].append((keys | none, estimate, n))
      for name, title in PIXELS.items():
        for fraction in FRACTIONS:
          share = f'{100 * fraction:g} %'
          where = keys | {'pixels': title, 'blackened': share}
          labels = own[f'{name}/{fraction:g}/{version}/labels']
          right = labels == truth[rows]
          if version == 'clean':
            estimate = share_estimate(right, ids)
          else:
            estimate = share_estimate(~right, ids, paper(name, share, attack))
            left[version][attack, name, fraction] = estimate
          cells[version].append((where, estimate, n))
          if version == EXACT:
            blackened.append(
              _blackened_row(
                where | {'role': 'blackened'},
                repair.exact_images(inputs, attack)[rows],
                own[f'{name}/{fraction:g}/{version}/pixels'],
              )
            )
  rows = []
  for version, parts in cells.items():
    if parts:
      metric = ACCURACY if version == 'clean' else RATE
      keys, estimates, numbers = zip(*parts, strict=True)
      rows += share_rows(keys, metric, estimates, numbers)
  examples, drawings = example_pictures(inputs, found, attacks)
  small = [a for a in attacks if a in MINIMAL]
  return ReportParts(
    claims=claims(
      left[EXACT],
      small,
      min((len(found[a]['rows']) for a in small), default=0),
      {name: detectors.too_weak(inputs, name) for name in DETECTORS},
    ),
    rows=rows + blackened + report.picture_rows(inputs),
    answer=answer(left[EXACT], small),
    tables=tables(inputs),
    figures=drawings,
    arrays=examples,
    warnings=broken_clean(found, attacks, truth)
    + [
      f'{PAPER_NAME[attack]} has no success on test pictures, so there is '
      'nothing to undo.'
      for attack in found
      if attack not in attacks
    ],
  )


def broken_clean(found, attacks, truth) -> list[str]:
  """Says how many clean pictures blackening itself makes wrong."""
  few = FRACTIONS[0]
  shares = {
    title: 100
    * np.mean(
      np.concatenate(
        [
          found[a][f'{name}/{few:g}/clean/labels'] == truth[found[a]['rows']]
          for a in attacks
        ],
        axis=-1,
      )
    )
    for name, title in PIXELS.items()
    if attacks
  }
  if not shares or min(shares.values()) > KEEPS:
    return []
  return [
    'Blackening 5 % of the pixels makes clean pictures wrong as well; of those '
    'that were right, these still are: '
    + ', '.join(f'{title} {share:.0f} %' for title, share in shares.items())
    + '. A picture that "still succeeds" may be one that blackening spoils.'
  ]


def _blackened_row(keys, images: np.ndarray, pixels: np.ndarray) -> Row:
  """Counts the pixels that blackening changed, in per cent of all."""
  shares = 100 * np.mean(pixels & to_uint8(images).any(-1), axis=(-2, -1))
  if shares.ndim == 2:  # Several trainings of a detector.
    shares = shares.mean(axis=0)
  low, high = mean_interval(shares) if len(shares) > 1 else (None, None)
  return Row(keys, BLACKENED, float(shares.mean()), low, high, n=len(shares))


def claims(left: dict[Any, Estimate], attacks, n, weak) -> list[Claim]:
  """Judges what the paper says of Table 1, for both detectors.

  Args:
    left: {(attack, pixels, fraction): success rate afterwards}.
    attacks: The L2 attacks that had success.
    n: Pictures of the attack that has the fewest.
    weak: {detector: why it is too weak for any claim}.
  """
  few, many = FRACTIONS
  judged = []
  for name, title in DETECTORS.items():
    ask = functools.partial(judge, n=n, unfit=weak[name])
    judged += [
      ask(
        f'Blackening the 5 % of the pixels that {title} minds most undoes L2 '
        'attacks',
        [
          Comparison(f'{PAPER_NAME[a]}: undone', 100 - left[a, name, few])
          for a in attacks
        ],
      ),
      ask(
        f'Blackening the 5 % that {title} minds most undoes more L2 attacks '
        'than 5 % random pixels',
        [
          Comparison(
            f'{PAPER_NAME[a]}: random minus {title}',
            left[a, 'random', few] - left[a, name, few],
          )
          for a in attacks
        ],
      ),
      ask(
        f'Blackening the 5 % that {title} minds most undoes more L2 attacks '
        'than as many random pixels that are not black',
        [
          Comparison(
            f'{PAPER_NAME[a]}: random lit minus {title}',
            left[a, 'lit', few] - left[a, name, few],
          )
          for a in attacks
        ],
      ),
      ask(
        f'Blackening 5 % of the pixels undoes more L2 attacks than 10 %, '
        f'picked by {title}',
        [
          Comparison(
            f'{PAPER_NAME[a]}: left at 10 % minus at 5 %',
            left[a, name, many] - left[a, name, few],
          )
          for a in attacks
        ],
      ),
    ]
  return judged


def answer(left: dict[Any, Estimate], attacks) -> str:
  """Answers the question in a sentence."""
  if not attacks:
    return 'No L2 attack had success, so there was nothing to undo.'
  rest = {
    title: np.mean([left[a, name, FRACTIONS[0]].value for a in attacks])
    for name, title in PIXELS.items()
  }
  return (
    'Of the successful L2 attacks, these still succeed once 5 % of the pixels '
    'are black, by how they are picked: '
    + ', '.join(f'{title} {value:.1f} %' for title, value in rest.items())
    + '.'
  )


def tables(inputs: RunInputs) -> list[Table]:
  """Lays out the tables."""
  names = report.columns(inputs, [c.name for c in cells(inputs.config)])

  def table(title, metric, role, note='', control=False):
    return Table(
      title,
      metric,
      ('pixels', 'blackened'),
      'attack',
      columns=names,
      filters={'role': role},
      note=note,
      control=control,
    )

  return [
    table(
      'Success of attacks after blackening pixels',
      RATE,
      EXACT,
      'Of the test pictures that the attack changed with success, as it left '
      'them: share that still has another label than before the attack. '
      'Printed numbers (data set not stated) stand beside DET_IS. Controls: '
      'random pixels, and random lit ones, which are not black. Largest '
      'change: the pixels that the attack changed most, which a defender does '
      'not know. DET_IS and DET_org have learnt all attacks; mean over '
      f'{inputs.config.num_seeds} trainings.',
    ),
    table(
      'The same of pictures that are a success after rounding to 8 bit',
      RATE,
      ROUNDED,
      'Rounding brings many pictures of a minimal-norm attack back by itself, '
      'so few are left; claims rest on the table above.',
    ),
    table(
      'Accuracy on the clean versions of these pictures, treated alike',
      ACCURACY,
      'clean',
      'All of them are classified correctly when left alone.',
    ),
    table(
      'What blackening changed: share of all pixels',
      BLACKENED,
      'blackened',
      'A pixel that was black before does not change.',
      control=True,
    ),
    *report.picture_tables(inputs),
  ]


def example_pictures(inputs: RunInputs, found, attacks):
  """Shows the first success of every attack, and what was blackened.

  Returns:
    The arrays and the figures.
  """
  few = FRACTIONS[0]
  names = inputs.train.class_names
  pictures: list[np.ndarray] = []
  titles: list[list[str]] = []
  for attack in attacks:
    own = found[attack]
    if not len(own[f'{ROUNDED}/rows']):
      continue
    row = own[f'{ROUNDED}/rows'][0]
    image = inputs.attacked[attack]['test'].images[row]
    title = PAPER_NAME[attack]
    pictures.append(inputs.clean['test'].images[row])
    label = names[inputs.clean['test'].labels[row]]
    titles.append([f'clean (for {title})', f'class {label}'])
    for name in (*DETECTORS, 'lit'):
      key = f'{name}/{few:g}/{ROUNDED}'
      # Of the first training, if there are several.
      label = names[own[f'{key}/labels'].reshape(-1)[0]]
      pixels = own[f'{key}/pixels'].reshape(-1, *image.shape[:2])[0]
      pictures.append(repair.marked(image, pixels))
      titles.append([f'{title}, {PIXELS[name]}', f'seen as {label}'])
  if not pictures:
    return {}, []
  return {'examples': np.stack([repair.coloured(p) for p in pictures])}, [
    Plot(
      'examples',
      'titled_pictures',
      'The first test picture on which each attack has success after rounding: '
      'clean, and attacked with the 5 % blackened pixels in red (those that '
      'the first training of a detector picks); over it the class that the '
      'victim then sees.',
      {'pictures': 'examples', 'titles': titles},
    )
  ]
