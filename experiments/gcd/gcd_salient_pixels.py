"""Table 1: does blackening the pixels that a detector minds undo an attack?"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from experiments import conduct
from experiments.gcd.protocol import record, repair
from experiments.gcd.protocol import run as protocol
from experiments.gcd.protocol import study as studies
from experiments.gcd.protocol.plan import plan
from experiments.gcd.protocol.setting import (
  MINIMAL,
  PAPER_NAME,
  Config,
  get_config,
)
from experiments.gcd.protocol.study import Study
from jaxadv.classifier import predict
from jaxadv.defences import rectifier
from jaxadv.errors import UserError
from jaxadv.experiment import Cell
from jaxadv.metrics.figures import Figure
from jaxadv.metrics.intervals import mean_interval
from jaxadv.reports import Claim, Record, Row, Table
from jaxadv.reports import Figure as Drawing
from jaxadv.reports.verdicts import Comparison, judge
from jaxadv.types import picture_keys
from jaxadv.units import to_float, to_uint8

__all__ = ['cells', 'get_config', 'plan', 'run']

QUESTION = (
  'Does blackening the few pixels that a detector minds most undo an attack, '
  'and more so than blackening others?'
)
# Of the paper's Table 1, and Linf attacks for contrast.
UNTARGETED = ('deepfool', 'cw', 'ddn', 'pgd', 'fgsm')
DETECTORS = {'is': 'DET_IS', 'org': 'DET_org'}
PIXELS = DETECTORS | {
  'random': 'random',
  'lit': 'random lit',
  'change': 'largest change',
}
FRACTIONS = (0.05, 0.1)
# Clean accuracy (%) below which blackening itself is said to do harm.
KEEPS = 95.0
BLACKENED = 'pixels that were not black yet (%)'


def cells(config: Config) -> list[Cell]:
  """Lists the cells of a run: every untargeted attack."""
  return [
    Cell(attack, {'attack': attack})
    for attack in UNTARGETED
    if attack in config.attacks
  ]


def run(config: Config, workdir: str) -> Record | None:
  """Runs the experiment and writes its report; see `protocol.run`.

  Raises:
    UserError: As `protocol.run`, or if no attack is untargeted.
  """
  if not cells(config):
    raise UserError(
      f'--attacks is {",".join(config.attacks)!r}; gcd_salient_pixels needs '
      f'one or more of {", ".join(UNTARGETED)}'
    )
  return protocol.run(
    config,
    workdir,
    name='gcd_salient_pixels',
    question=QUESTION,
    cells=cells(config),
    work=conduct.CellWork(run_cell),
    describe=describe,
  )


def run_cell(study: Study, cell: Cell, note) -> dict[str, np.ndarray]:
  """Blackens pixels of the pictures that an attack changed with success.

  Success is judged on 8-bit pictures. The clean versions are treated alike.

  Returns:
    'rows', int[n], which test pictures those are; and, for every way to pick
    pixels, every fraction, 'attacked' and 'clean', 'NAME/FRACTION/VERSION/
    labels', int[n], and '.../pixels', bool[n, H, W].
  """
  attacked = study.attacked[cell.name]['test']
  rows = np.flatnonzero(attacked.success_uint8)
  found = {'rows': rows}
  if not len(rows):
    return found
  pictures = {
    'attacked': attacked.images[rows],
    'clean': study.clean['test'].images[rows],
  }
  source = study.clean['test'].source[rows]
  for name in PIXELS:
    for version, images in pictures.items():
      note(f'{PAPER_NAME[cell.name]}, pixels by {PIXELS[name]}', 0.0)
      size = sizes(study, name, images, pictures, source)
      for fraction in FRACTIONS:
        pixels, blackened = blacken(images, size, fraction)
        found[f'{name}/{fraction:g}/{version}/labels'] = predict(
          study.victim.classifier, blackened, repair.ROWS
        ).argmax(-1)
        found[f'{name}/{fraction:g}/{version}/pixels'] = pixels
  return found


def sizes(study, name, images, pictures, source) -> np.ndarray:
  """Gives float32[n, H, W, C]; pixels with large values are blackened first.

  Args:
    study: The study.
    name: One of `PIXELS`.
    images: uint8[n, H, W, C], the pictures to blacken.
    pictures: Those of both versions.
    source: int[n], their ids; random pixels go by it.
  """
  if name in DETECTORS:
    return repair.look(repair.pooled_score(study, name, 0), images).gradient
  if name == 'change':
    return np.asarray(
      to_float(pictures['attacked']) - to_float(pictures['clean'])
    )
  keys = picture_keys(studies.stream(study.config, 'random pixels'), source)
  drawn = repair.in_batches(_drawn, keys, images)
  # A black pixel comes after all others.
  lit = images.any(-1, keepdims=True)
  return drawn + lit if name == 'lit' else drawn


@jax.jit
def _drawn(keys, images):
  shape = (*images.shape[1:3], 1)
  return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


@jax.jit
def _blacken(fraction, images, size):
  floats = to_float(images)
  pixels = rectifier.suspects(
    repair.standing_in(size), floats, fraction, mask='fraction'
  )
  return pixels, to_uint8(rectifier.zeroed(floats, pixels))


def blacken(
  images: np.ndarray, size: np.ndarray, fraction: float
) -> tuple[np.ndarray, np.ndarray]:
  """Blackens the share of the pixels that have the largest |size|.

  Args:
    images: uint8[n, H, W, C].
    size: float32[n, H, W, C or 1], added up over channels.
    fraction: In [0, 1].

  Returns:
    bool[n, H, W], which pixels; and the pictures, uint8.
  """
  size = np.broadcast_to(size, images.shape)
  return repair.in_batches(
    functools.partial(_blacken, np.float32(fraction)), images, size
  )


def describe(study: Study, found: dict[str, Any]) -> conduct.Findings:
  """Says what blackening did."""
  attacks = [a for a in found if len(found[a]['rows'])]
  left, rows = {}, []
  truth, source = study.clean['test'].labels, study.clean['test'].source
  printed = record.printed('table1') if record.paper_dataset(study) else {}
  for attack in attacks:
    own = found[attack]
    labels, ids = truth[own['rows']], source[own['rows']]
    keys = {'attack': PAPER_NAME[attack]}
    rows.append(
      record.share_row(
        keys | {'role': 'success', 'pixels': 'none', 'blackened': '0 %'},
        record.RATE,
        np.ones(len(ids), bool),
        printed.get(('0 %', PAPER_NAME[attack])),
      )
    )
    for name, title in PIXELS.items():
      for fraction in FRACTIONS:
        share = f'{100 * fraction:g} %'
        where = keys | {'pixels': title, 'blackened': share}
        wrong = own[f'{name}/{fraction:g}/attacked/labels'] != labels
        left[attack, name, fraction] = record.share_figure(wrong, ids)
        paper = printed.get((share, PAPER_NAME[attack]))
        rows += [
          record.share_row(
            where | {'role': 'success'},
            record.RATE,
            wrong,
            paper if name == 'is' else None,
          ),
          record.share_row(
            where | {'role': 'clean'},
            record.ACCURACY,
            own[f'{name}/{fraction:g}/clean/labels'] == labels,
          ),
          _blackened_row(
            where | {'role': 'blackened'},
            study.attacked[attack]['test'].images[own['rows']],
            own[f'{name}/{fraction:g}/attacked/pixels'],
          ),
        ]
  examples, drawings = example_pictures(study, found, attacks)
  return conduct.Findings(
    claims=claims(left, [a for a in attacks if a in MINIMAL]),
    rows=rows + record.picture_rows(study),
    answer=answer(left, [a for a in attacks if a in MINIMAL]),
    tables=tables(study),
    figures=drawings,
    arrays=examples,
    warnings=broken_clean(found, attacks, truth)
    + [
      f'{PAPER_NAME[attack]} has no success on 8-bit test pictures, so there '
      'is nothing to undo.'
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
        ]
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
  shares = 100 * np.mean(pixels & images.any(-1), axis=(1, 2))
  low, high = mean_interval(shares) if len(shares) > 1 else (None, None)
  return Row(keys, BLACKENED, float(shares.mean()), low, high, n=len(shares))


def claims(left: dict[Any, Figure], attacks) -> list[Claim]:
  """Judges what the paper says of Table 1, for both detectors.

  Args:
    left: {(attack, pixels, fraction): success rate afterwards}.
    attacks: The L2 attacks that had success.
  """
  few, many = FRACTIONS
  everything = Figure(100.0, np.array(100.0))
  judged = []
  for name, title in DETECTORS.items():
    judged += [
      judge(
        f'Blackening the 5 % of the pixels that {title} minds most undoes L2 '
        'attacks',
        [
          Comparison(
            f'{PAPER_NAME[a]}: undone', everything - left[a, name, few]
          )
          for a in attacks
        ],
      ),
      judge(
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
      judge(
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
      judge(
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


def answer(left: dict[Any, Figure], attacks) -> str:
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


def tables(study: Study) -> list[Table]:
  """Lays out the tables."""
  names = record.columns(study, [c.name for c in cells(study.config)])

  def table(title, metric, role, note='', control=False):
    return Table(
      title,
      metric,
      ('pixels', 'blackened'),
      'attack',
      columns=names,
      where={'role': role},
      note=note,
      control=control,
    )

  return [
    table(
      'Success of attacks after blackening pixels',
      record.RATE,
      'success',
      'Of the test pictures that the attack changed with success, rounded to 8 '
      'bit: share that still has another label than before the attack. Printed '
      'numbers (data set not stated) stand beside DET_IS. Controls: random '
      'pixels, and random lit ones, which are not black. Largest change: the '
      'pixels that the attack changed most, which a defender does not know.',
    ),
    table(
      'Accuracy on the clean versions of these pictures, treated alike',
      record.ACCURACY,
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
    *record.picture_tables(study),
  ]


def example_pictures(study: Study, found, attacks):
  """Shows the first success of every attack, and what was blackened.

  Returns:
    The arrays and the figures.
  """
  if not attacks:
    return {}, []
  few = FRACTIONS[0]
  names = study.train.class_names
  pictures: list[np.ndarray] = []
  titles: list[list[str]] = []
  for attack in attacks:
    own = found[attack]
    row = own['rows'][0]
    image = study.attacked[attack]['test'].images[row]
    title = PAPER_NAME[attack]
    pictures.append(study.clean['test'].images[row])
    label = names[study.clean['test'].labels[row]]
    titles.append([f'clean (for {title})', f'class {label}'])
    for name in (*DETECTORS, 'lit'):
      key = f'{name}/{few:g}/attacked'
      label = names[own[f'{key}/labels'][0]]
      pictures.append(repair.marked(image, own[f'{key}/pixels'][0]))
      titles.append([f'{title}, {PIXELS[name]}', f'seen as {label}'])
  return {'examples': np.stack([repair.coloured(p) for p in pictures])}, [
    Drawing(
      'examples',
      'titled_pictures',
      'The first test picture on which each attack has success: clean, and '
      'attacked with the 5 % blackened pixels in red; over it the class that '
      'the victim then sees.',
      {'pictures': 'examples', 'titles': titles},
    )
  ]
