"""Table 5: accuracy behind the rectifier and behind the defences of others."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import conduct
from experiments.gcd.protocol import record, repair, rivals
from experiments.gcd.protocol import run as protocol
from experiments.gcd.protocol import study as studies
from experiments.gcd.protocol.baselines import density
from experiments.gcd.protocol.plan import plan
from experiments.gcd.protocol.repair import UNMASKED, Setting
from experiments.gcd.protocol.setting import (
  MINIMAL,
  PAPER_NAME,
  Config,
  get_config,
)
from experiments.gcd.protocol.study import Study
from jaxadv.classifier import predict
from jaxadv.defences import rectifier
from jaxadv.defences.pixel_defend import pixel_defend
from jaxadv.defences.total_variance import total_variance
from jaxadv.experiment import Cell
from jaxadv.metrics.figures import Figure, mean
from jaxadv.metrics.intervals import mean_interval
from jaxadv.reports import Claim, Record, Row, Table
from jaxadv.reports import Figure as Drawing
from jaxadv.reports.verdicts import Comparison, judge
from jaxadv.types import picture_keys
from jaxadv.units import to_float

__all__ = ['cells', 'get_config', 'plan', 'run']

QUESTION = (
  'Does the rectifier give attacked pictures their class back, better than '
  'other defences and without loss on clean ones?'
)
# What each cell measures.
CELLS = ('gcd', 'pd', 'tvm', 'at_ddn', 'at_pgd')
DEFENCES = {
  'none': 'F',
  'rectifier': 'rectifier alone',
  'unmasked': 'f_rec, not masked',
  'pipeline': 'GCD',
  'pd': 'PixelDefend',
  'at_ddn': 'AT_DDN',
  'at_pgd': 'AT_PGD',
  'tvm': 'TVM',
}
RIVALS = ('pd', 'at_ddn', 'at_pgd', 'tvm')
# Loss of clean accuracy that still counts as keeping it, in points.
KEEPS = 2.0
VALID = 'accuracy on validation pictures (%)'


def cells(config: Config) -> list[Cell]:
  """Lists the cells of a run: the paper's defence and each of the others."""
  del config
  return [Cell(name, {'defence': name}) for name in CELLS]


def run(config: Config, workdir: str) -> Record | None:
  """Runs the experiment and writes its report; see `protocol.run`."""
  return protocol.run(
    config,
    workdir,
    name='gcd_recovery',
    question=QUESTION,
    cells=cells(config),
    work=conduct.CellWork(run_cell),
    describe=describe,
  )


def run_cell(study: Study, cell: Cell, note) -> dict[str, np.ndarray]:
  """Classifies test pictures behind a defence.

  Returns:
    {'DEFENCE/KIND': int[n]}, labels of the first n test pictures, clean or
    attacked; of adversarial training also 'DEFENCE/own/ATTACK', bool[N],
    whether it withstands an attack made for it; of the rectifier what
    `repair_all` adds.
  """
  if cell.name == 'gcd':
    return repair_all(study, note)
  kinds = ('clean', *study.config.attacks)
  if cell.name in ('pd', 'tvm'):
    return purify_all(study, cell.name, kinds, note)
  attack = cell.name.removeprefix('at_')
  note(f'adversarial training with {PAPER_NAME[attack]}', 0.0)
  classifier = rivals.hardened(study, attack)
  found = {
    f'{cell.name}/{kind}': predict(
      classifier,
      repair.side_images(study, kind, 'test'),
      study.config.batch_size,
    ).argmax(-1)
    for kind in kinds
  }
  for own in rivals.TRAINED_WITH:
    note(f'{DEFENCES[cell.name]} attacked by {PAPER_NAME[own]}')
    found[f'{cell.name}/own/{own}'] = rivals.withstands(study, classifier, own)
  return found


def purify_all(study: Study, name: str, kinds, note):
  """Classifies pictures behind PixelDefend or TVM."""
  n = study.config.num_test
  if name == 'pd':
    note('PixelCNN++', 0.0)
    module, state, _ = density(study)
    purifier = pixel_defend(module, study.config.purified_radius)
    n = study.config.purified_pictures
  else:
    # What the authors' code minimises unless told otherwise.
    purifier, state = total_variance(objective='released'), ()
  note(f'{DEFENCES[name]} on {n} pictures of each kind', 0.0)
  # All kinds together: a batch costs little more than a picture.
  labels = rivals.purified_labels(
    study,
    purifier,
    state,
    np.concatenate([repair.side_images(study, k, 'test')[:n] for k in kinds]),
    np.tile(study.clean['test'].source[:n], len(kinds)),
  )
  parts = np.split(labels, len(kinds))
  return {
    f'{name}/{kind}': part for kind, part in zip(kinds, parts, strict=True)
  }


def repair_all(study: Study, note) -> dict[str, np.ndarray]:
  """Chooses masking rate and reading, and repairs the test pictures.

  Returns:
    'none', 'rectifier', 'unmasked' and 'pipeline' '/KIND', int[N];
    'flagged/KIND', bool[N]; 'valid', what `valid_accuracy` gives; 'chosen',
    the row of the setting taken.
  """
  config = study.config
  note('detectors', 0.0)
  score = repair.pooled_score(study, 'ensemble', 0)
  classifiers = repair.all_fine_tuned(study, score, 0, note)
  control = classifiers.pop(UNMASKED)
  choices = list(classifiers)
  valid = valid_accuracy(study, score, classifiers, note)
  chosen = int(np.argmax(valid.mean(axis=1)))
  setting = choices[chosen]
  found: dict[str, Any] = {'valid': valid, 'chosen': np.array(chosen)}
  for kind in ('clean', *config.attacks):
    note(f'rectifier on {kind}')
    images = repair.side_images(study, kind, 'test')
    seen = repair.look(score, images)
    source = study.clean['test'].source
    done = repair.repaired(
      study, images, source, seen, setting, classifiers[setting]
    )
    unmasked = repair.repaired(study, images, source, seen, UNMASKED, control)
    plain = predict(study.victim.classifier, images, config.batch_size)
    found |= {
      f'none/{kind}': plain.argmax(-1),
      f'rectifier/{kind}': done.labels,
      f'unmasked/{kind}': unmasked.labels,
      f'pipeline/{kind}': guarded_labels(
        seen.logits, done.labels, plain.argmax(-1)
      ),
      f'flagged/{kind}': seen.logits > 0,
    }
    found |= example(study, kind, images, seen, setting)
  return found


def guarded_labels(
  logits: np.ndarray, repaired: np.ndarray, plain: np.ndarray
) -> np.ndarray:
  """Gives the labels of the whole pipeline, as `rectifier.guarded` does."""
  return np.where(logits > 0, repaired, plain)


def valid_accuracy(study: Study, score, classifiers, note) -> np.ndarray:
  """Tries every setting on attacked validation pictures.

  Returns:
    float[S, V], for every picture the share of its attacked versions that are
    classified correctly.
  """
  clean, found = study.clean['valid'], []
  for attack in study.config.attacks:
    note(f'masking rates on validation {PAPER_NAME[attack]}', 0.0)
    images = repair.side_images(study, attack, 'valid')
    seen = repair.look(score, images)
    found.append(
      [
        repair.repaired(
          study, images, clean.source, seen, setting, classifier
        ).labels
        == clean.labels
        for setting, classifier in classifiers.items()
      ]
    )
  return np.mean(found, axis=0)


def example(study: Study, kind: str, images, seen, setting: Setting):
  """Keeps the first picture that the attack changed with success.

  Returns:
    The picture, its suspects, one draw of the mask, and the share of suspects;
    nothing if there is no success.
  """
  if kind == 'clean':
    return {}
  rows = np.flatnonzero(study.attacked[kind]['test'].success_uint8)[:1]
  if not len(rows):
    return {}
  mask, alpha = setting
  image = to_float(images[rows])
  suspects = rectifier.suspects(
    repair.standing_in(seen.gradient[rows]), image, alpha, mask=mask
  )
  key = studies.stream(study.config, 'rectifier')
  keys = picture_keys(key, jnp.asarray(study.clean['test'].source[rows]))
  masked = rectifier.mask_pixels(keys, image, suspects).images
  return {
    f'example/{kind}/row': rows[0],
    f'example/{kind}/suspects': np.asarray(suspects)[0],
    f'example/{kind}/masked': np.uint8(np.round(255 * masked[0])),
  }


def describe(study: Study, found: dict[str, Any]) -> conduct.Findings:
  """Says which defence recovers what."""
  labels = {k: v for cell in found.values() for k, v in cell.items()}
  kinds = ('clean', *study.config.attacks)
  truth, source = study.clean['test'].labels, study.clean['test'].source

  def right(defence: str, kind: str) -> np.ndarray:
    given = labels[f'{defence}/{kind}']
    return given == truth[: len(given)]

  def accuracy(defence: str, kind: str, n: int | None = None) -> Figure:
    holds = right(defence, kind)[:n]
    return record.share_figure(holds, source[: len(holds)])

  dataset = record.paper_dataset(study)
  printed = record.printed('table5')
  rows = []
  for defence, title in DEFENCES.items():
    for kind in kinds:
      attack = PAPER_NAME.get(kind, 'Clean')
      keys = {'role': 'recovery', 'defence': title, 'attack': attack}
      holds = right(defence, kind)
      rows.append(
        record.share_row(
          keys | {'pictures': 'all'},
          record.ACCURACY,
          holds,
          printed.get((dataset, attack, title)),
        )
      )
      if kind == 'clean':
        continue
      fooled = study.attacked[kind]['test'].success_uint8[: len(holds)]
      if fooled.any():
        rows.append(
          record.share_row(
            keys | {'pictures': 'still adversarial'},
            record.ACCURACY,
            holds[fooled],
          )
        )
    for group, own in groups_of(kinds).items():
      n = len(right(defence, 'clean'))
      rows.append(
        record.figure_row(
          {'role': 'group', 'defence': title, 'pictures': group},
          record.ACCURACY,
          mean([accuracy(defence, kind) for kind in own]),
          n,
        )
      )
  rows += (
    own_rows(labels) + flag_rows(labels, kinds) + valid_rows(study, labels)
  )
  examples, drawings = example_pictures(study, labels)
  chosen = repair.settings(study.config.alphas)[int(labels['chosen'])]
  return conduct.Findings(
    claims=claims(accuracy, study.config),
    rows=rows + record.picture_rows(study),
    answer=answer(accuracy, study.config, chosen),
    tables=tables(study, chosen),
    figures=[
      Drawing(
        'recovery',
        'interval_bars',
        'Accuracy behind each defence on clean pictures, and its mean over '
        'the attacks of a norm; pictures attacked for the undefended network. '
        'F: no defence. GCD: what the ensemble flags is rectified.',
        {
          'metric': record.ACCURACY,
          'category': 'pictures',
          'series': 'defence',
          'where': {'role': 'group'},
          'base': 0.0,
        },
      ),
      *drawings,
    ],
    arrays=examples,
    warnings=[
      f'Of {PAPER_NAME[kind]} no test picture is adversarial after rounding.'
      for kind in study.config.attacks
      if not study.attacked[kind]['test'].success_uint8.any()
    ],
  )


def groups_of(kinds) -> dict[str, list[str]]:
  """Groups kinds of pictures: clean, Linf and L2 attacks."""
  groups = {
    'clean': ['clean'],
    'Linf attacks': [k for k in kinds if k not in ('clean', *MINIMAL)],
    'L2 attacks': [k for k in kinds if k in MINIMAL],
  }
  return {name: own for name, own in groups.items() if own}


def own_rows(labels) -> list[Row]:
  """Gives the accuracy of hardened networks on attacks made for them."""
  return [
    record.share_row(
      {
        'role': 'own',
        'defence': DEFENCES[defence],
        'attack': PAPER_NAME[attack],
      },
      record.ACCURACY,
      labels[f'{defence}/own/{attack}'],
    )
    for defence in ('at_ddn', 'at_pgd')
    for attack in rivals.TRAINED_WITH
  ]


def flag_rows(labels, kinds) -> list[Row]:
  """Gives the share of pictures that the ensemble flags."""
  return [
    record.share_row(
      {'role': 'flagged', 'pictures': PAPER_NAME.get(kind, 'Clean')},
      'flagged (%)',
      labels[f'flagged/{kind}'],
    )
    for kind in kinds
  ]


def valid_rows(study: Study, labels) -> list[Row]:
  """Gives what the masking rate and its reading were chosen by."""
  rows = []
  choices = repair.settings(study.config.alphas)
  for (mask, alpha), shares in zip(choices, labels['valid'], strict=True):
    rows.append(
      Row(
        {'role': 'choice', 'reading': mask, 'alpha': f'{alpha:g}'},
        VALID,
        100 * float(shares.mean()),
        *mean_interval(100 * shares),
        n=len(shares),
      )
    )
  return rows


def claims(accuracy, config: Config) -> list[Claim]:
  """Judges what the paper says of Table 5."""
  attacks = config.attacks

  def above(defence: str, other: str, n: int | None = None):
    return [
      Comparison(
        f'{PAPER_NAME[a]}: {DEFENCES[defence]} minus {DEFENCES[other]}',
        accuracy(defence, a, n) - accuracy(other, a, n),
      )
      for a in attacks
    ]

  def keeps(defence: str) -> Comparison:
    lost = accuracy(defence, 'clean') - accuracy('none', 'clean')
    return Comparison(
      f'{DEFENCES[defence]} minus F, plus {KEEPS:g}', lost - (-KEEPS)
    )

  return [
    judge(
      'The rectifier alone recovers more than the unprotected network has, for '
      'every attack',
      above('rectifier', 'none'),
    ),
    judge(
      'The rectifier alone recovers more than its classifier fine-tuned and '
      'asked without masks',
      above('rectifier', 'unmasked'),
    ),
    judge(
      'GCD recovers more than the unprotected network has, for every attack',
      above('pipeline', 'none'),
    ),
    *(
      judge(
        f'GCD surpasses {DEFENCES[rival]} on every attack',
        above(
          'pipeline', rival, config.purified_pictures if rival == 'pd' else None
        ),
      )
      for rival in RIVALS
    ),
    judge(
      f'GCD keeps the accuracy on clean pictures (loss below {KEEPS:g} points)',
      [keeps('pipeline')],
    ),
    judge(
      'The rectifier alone, as if all clean pictures were flagged, keeps their '
      f'accuracy (loss below {KEEPS:g} points)',
      [keeps('rectifier')],
    ),
  ]


def answer(accuracy, config: Config, chosen: Setting) -> str:
  """Answers the question in a sentence."""
  mask, alpha = chosen
  parts = [
    f'{title} '
    f'{np.mean([accuracy(name, a).value for a in config.attacks]):.1f} %'
    for name, title in DEFENCES.items()
  ]
  return (
    f'Mean accuracy over the attacks: {", ".join(parts)}; alpha {alpha:g} as a '
    f'{mask}, chosen on validation pictures.'
  )


def tables(study: Study, chosen: Setting) -> list[Table]:
  """Lays out the tables."""
  names = record.columns(study, study.config.attacks)
  mask, alpha = chosen

  def recovery(pictures: str, note: str) -> Table:
    return Table(
      f'Accuracy behind each defence, {pictures} attacked pictures',
      record.ACCURACY,
      ('defence',),
      'attack',
      columns=('Clean', *names),
      where={'role': 'recovery', 'pictures': pictures},
      note=note,
    )

  return [
    recovery(
      'all',
      'Attacked for the undefended network F, rounded to 8 bit. All of these '
      'pictures are classified correctly by F when clean, so F has 100 there; '
      f'the paper seems to take all. GCD: alpha {alpha:g} as a {mask}, vote '
      f'over {study.config.num_draws} draws.',
    ),
    recovery(
      'still adversarial',
      'Only those that are a success after rounding, where F has 0.',
    ),
    Table(
      'Accuracy of adversarially trained networks, attacked themselves',
      record.ACCURACY,
      ('defence',),
      'attack',
      columns=names,
      where={'role': 'own'},
      note='A minimal-norm attack has no budget: DDN finds a change for almost '
      'any picture.',
    ),
    Table(
      'Flagged by the ensemble of detectors',
      'flagged (%)',
      ('role',),
      'pictures',
      columns=('Clean', *names),
      where={'role': 'flagged'},
    ),
    Table(
      'Choice of alpha and its reading',
      VALID,
      ('reading',),
      'alpha',
      where={'role': 'choice'},
      note='Rectifier alone, mean over the attacks on validation pictures.',
    ),
    *record.picture_tables(study),
  ]


def example_pictures(study: Study, labels):
  """Shows what the rectifier does to the first success of every attack.

  Returns:
    The arrays and the figures.
  """
  names = study.train.class_names
  pictures: list[np.ndarray] = []
  titles: list[list[str]] = []
  for attack in study.config.attacks:
    if f'example/{attack}/row' not in labels:
      continue
    row, title = int(labels[f'example/{attack}/row']), PAPER_NAME[attack]
    image = study.attacked[attack]['test'].images[row]
    suspects = labels[f'example/{attack}/suspects']
    pictures += [
      study.clean['test'].images[row],
      image,
      repair.marked(image, suspects),
      labels[f'example/{attack}/masked'],
    ]
    titles += [
      ['clean', f'class {names[study.clean["test"].labels[row]]}'],
      [title, f'seen as {names[labels[f"none/{attack}"][row]]}'],
      ['suspects', f'{100 * suspects.mean():.1f} %'],
      [
        'masked, one draw',
        f'voted {names[labels[f"rectifier/{attack}"][row]]}',
      ],
    ]
  if not pictures:
    return {}, []
  return {'examples': np.stack([repair.coloured(p) for p in pictures])}, [
    Drawing(
      'examples',
      'titled_pictures',
      'The first test picture on which each attack has success: clean, '
      'attacked, with suspects in red, and with half of them replaced; over it '
      'the class that F sees, and over the masked one the vote of the '
      'rectifier.',
      {'pictures': 'examples', 'titles': titles},
    )
  ]
