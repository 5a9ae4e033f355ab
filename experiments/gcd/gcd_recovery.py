"""Table 5: accuracy behind the rectifier and behind the defences of others."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments import conduct
from experiments.gcd.protocol import detection, record, repair, rivals
from experiments.gcd.protocol import run as protocol
from experiments.gcd.protocol import study as studies
from experiments.gcd.protocol.baselines import density, density_doubts
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
from jaxadv.metrics.estimates import Estimate, mean, share_estimate
from jaxadv.metrics.intervals import mean_interval
from jaxadv.reports import (
  Claim,
  Plot,
  Record,
  Row,
  Table,
  estimate_rows,
  share_row,
  share_rows,
)
from jaxadv.reports.verdicts import Comparison, judge
from jaxadv.types import Purifier, picture_keys
from jaxadv.units import to_float

__all__ = ['cells', 'get_config', 'plan', 'run']

QUESTION = (
  'Does the rectifier give attacked pictures their class back, better than '
  'other defences and without loss on clean ones?'
)
# What each cell measures.
CELLS = ('gcd', 'pd', 'tvm', 'tvm_printed', 'at_ddn', 'at_pgd')
DEFENCES = {
  'none': 'F',
  'rectifier': 'rectifier alone',
  'unmasked': 'f_rec, not masked',
  'pipeline': 'GCD',
  'pd': 'PixelDefend',
  'at_ddn': 'AT_DDN',
  'at_pgd': 'AT_PGD',
  'tvm': 'TVM',
  'tvm_printed': 'TVM as printed',
}
RIVALS = ('pd', 'at_ddn', 'at_pgd', 'tvm')
HARDENED = ('at_ddn', 'at_pgd')
# With several trainings.
TRAINED = ('rectifier', 'unmasked', 'pipeline')
# Whether attacked pictures are rounded, as everywhere else, or as the attack
# left them, of which the paper says nothing.
ROUNDED, EXACT = '8 bit', 'float'
# PixelDefend rounds by itself; TVM costs as much again.
EXACT_DEFENCES = ('none', *TRAINED, *HARDENED)
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
    {'DEFENCE/FORM/KIND': int[n]}, labels of the first n test pictures, clean
    or attacked, rounded or not; int[S, n] after S trainings. Of adversarial
    training also 'DEFENCE/own/ATTACK', bool[N], whether it withstands an
    attack made for it, and 'DEFENCE/kept' and 'DEFENCE/withstood', its
    accuracy on clean validation pictures and on those that its own attack
    makes; of the rectifier and of PixelDefend what they are chosen by.
  """
  if cell.name == 'gcd':
    return repair_all(study, note)
  if cell.name == 'pd':
    return pixel_defend_all(study, note)
  if cell.name.startswith('tvm'):
    released = cell.name == 'tvm'
    purifier = total_variance(objective='released' if released else 'printed')
    n = study.config.num_test
    note(f'{DEFENCES[cell.name]} on {n} pictures of each kind', 0.0)
    labels = purify(study, purifier, (), 'test', n)
    return {f'{cell.name}/{ROUNDED}/{k}': v for k, v in labels.items()}
  attack = cell.name.removeprefix('at_')
  note(f'adversarial training with {PAPER_NAME[attack]}', 0.0)
  classifier = rivals.hardened(study, attack)
  found: dict[str, Any] = {
    f'{cell.name}/{form}/{kind}': predict(
      classifier, images, study.config.batch_size
    ).argmax(-1)
    for kind, form, images in test_pictures(study)
  }
  for own in rivals.TRAINED_WITH:
    note(f'{DEFENCES[cell.name]} attacked by {PAPER_NAME[own]}')
    found[f'{cell.name}/own/{own}'] = rivals.withstands(
      study, classifier, own, 'test'
    )
  withstood = rivals.withstands(study, classifier, attack, 'valid')
  return found | {
    f'{cell.name}/kept': np.array(repair.kept(study, classifier)),
    f'{cell.name}/withstood': np.array(100 * withstood.mean()),
  }


def kinds_of(config: Config) -> tuple[str, ...]:
  """Names clean pictures and the attacks."""
  return ('clean', *config.attacks)


def test_pictures(study: Study) -> list[tuple[str, str, np.ndarray]]:
  """Lists kind, form and test pictures of everything that is recovered."""
  rounded = [
    (kind, ROUNDED, repair.side_images(study, kind, 'test'))
    for kind in kinds_of(study.config)
  ]
  return rounded + [
    (attack, EXACT, repair.exact_images(study, attack))
    for attack in study.config.attacks
  ]


def purify(
  study: Study, purifier: Purifier, state: Any, side: str, n: int
) -> dict[str, np.ndarray]:
  """Classifies the first n pictures of each kind behind a purifier."""
  kinds = kinds_of(study.config)
  # All kinds together: a batch costs little more than a picture.
  labels = rivals.purified_labels(
    study,
    purifier,
    state,
    np.concatenate([repair.side_images(study, k, side)[:n] for k in kinds]),
    np.tile(study.clean[side].source[:n], len(kinds)),
  )
  return dict(zip(kinds, np.split(labels, len(kinds)), strict=True))


def pixel_defend_all(study: Study, note) -> dict[str, np.ndarray]:
  """Chooses PixelDefend's radius, and purifies the test pictures.

  Nobody tells a defender how far attacks go, so the radius is that of the best
  mean accuracy over clean pictures and every attack.

  Returns:
    'pd/FORM/KIND', int[n]; 'pd/valid', bool[R, K, n], whether validation
    pictures of each kind are classified correctly at each radius; and
    'pd/chosen', the row of the radius taken.
  """
  config = study.config
  note('PixelCNN++', 0.0)
  module, state, _ = density(study)
  truth = study.clean['valid'].labels[: config.purified_valid]
  purifiers = [pixel_defend(module, int(r)) for r in config.purified_radii]
  valid = []
  for radius, purifier in zip(config.purified_radii, purifiers, strict=True):
    note(f'PixelDefend at radius {radius} on validation pictures', 0.0)
    labels = purify(
      study,
      purifier,
      state,
      'valid',
      config.purified_valid,
    )
    valid.append([given == truth for given in labels.values()])
  chosen = int(np.argmax(np.mean(valid, axis=(1, 2))))
  n, radius = config.purified_pictures, config.purified_radii[chosen]
  note(f'PixelDefend at radius {radius} on {n} pictures of each kind', 0.0)
  labels = purify(study, purifiers[chosen], state, 'test', n)
  return {f'pd/{ROUNDED}/{kind}': own for kind, own in labels.items()} | {
    'pd/valid': np.array(valid),
    'pd/chosen': np.array(chosen),
  }


def repair_all(study: Study, note) -> dict[str, np.ndarray]:
  """Chooses masking rate and reading, and repairs the test pictures.

  One choice for all trainings: the best mean over them, among settings whose
  f_rec keeps enough clean pictures if there are any.

  Returns:
    'rectifier', 'unmasked' and 'pipeline' '/FORM/KIND', int[S, N];
    'none/FORM/KIND', int[N]; 'flagged/KIND', bool[S, N]; 'valid', float[C, V],
    for every setting and validation picture the share of its attacked versions
    that are classified correctly; 'kept', float[C + 1], the clean
    validation pictures that the f_rec of each setting keeps, the unmasked one
    last; 'chosen', the row of the setting taken.
  """
  note('detectors', 0.0)
  seeds = range(study.config.num_seeds)
  scores = [repair.pooled_score(study, 'ensemble', seed) for seed in seeds]
  tuned = [
    repair.all_fine_tuned(study, scores[seed], seed, note) for seed in seeds
  ]
  kept = np.mean(
    [[repair.kept(study, c) for c in own.values()] for own in tuned], axis=0
  )
  controls = [own.pop(UNMASKED) for own in tuned]
  choices = list(tuned[0])
  valid = np.mean(
    [
      [
        list(repair.valid_hits(study, attack, score, own, note).values())
        for attack in study.config.attacks
      ]
      for score, own in zip(scores, tuned, strict=True)
    ],
    axis=(0, 1),
  )
  chosen = choose(valid.mean(axis=1), kept[:-1])
  setting = choices[chosen]
  found: dict[str, Any] = {
    'valid': valid,
    'kept': kept,
    'chosen': np.array(chosen),
  }
  source = study.clean['test'].source
  for kind, form, images in test_pictures(study):
    note(f'rectifier on {kind}, {form}')
    plain = predict(
      study.victim.classifier, images, study.config.batch_size
    ).argmax(-1)
    each: dict[str, list[np.ndarray]] = {}
    for seed in seeds:
      seen = repair.look(scores[seed], images)
      asked = {
        'rectifier': (setting, tuned[seed][setting]),
        'unmasked': (UNMASKED, controls[seed]),
      }
      labels = {
        name: repair.repaired(
          study, images, source, seen, own, classifier
        ).labels
        for name, (own, classifier) in asked.items()
      }
      labels['pipeline'] = guarded_labels(
        seen.logits, labels['rectifier'], plain
      )
      for name, own_labels in labels.items():
        each.setdefault(f'{name}/{form}/{kind}', []).append(own_labels)
      if form == ROUNDED:
        each.setdefault(f'flagged/{kind}', []).append(seen.logits > 0)
        if not seed:
          found |= example(study, kind, images, seen, setting)
    found[f'none/{form}/{kind}'] = plain
    found |= {name: np.stack(parts) for name, parts in each.items()}
  return found


def choose(recovered: np.ndarray, kept: np.ndarray) -> int:
  """Picks the setting that recovers most of those that keep enough."""
  enough = kept >= repair.KEEPS
  return int(np.argmax(np.where(enough | ~enough.any(), recovered, -1)))


def guarded_labels(
  logits: np.ndarray, repaired: np.ndarray, plain: np.ndarray
) -> np.ndarray:
  """Gives the labels of the whole pipeline, as `rectifier.guarded` does."""
  return np.where(logits > 0, repaired, plain)


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
  kinds = kinds_of(study.config)
  measured = Measured(study, labels)
  examples, drawings = example_pictures(study, labels)
  chosen = repair.settings(study.config.alphas)[int(labels['chosen'])]
  rows = [
    *recovery_rows(measured, kinds),
    *own_rows(labels),
    *flag_rows(study, labels, kinds),
    *valid_rows(study, labels),
    *radius_rows(study, labels),
  ]
  return conduct.Findings(
    claims=claims(measured.accuracy, study.config, settings_of(study, labels)),
    rows=rows + record.picture_rows(study),
    answer=answer(measured.accuracy, study.config, chosen),
    tables=tables(study, chosen, labels),
    figures=[
      Plot(
        'recovery',
        'interval_bars',
        'Accuracy behind each defence on clean pictures, and its mean over '
        'the attacks of a norm; pictures attacked for the undefended network. '
        'F: no defence. GCD: what the ensemble flags is rectified.',
        {
          'metric': record.ACCURACY,
          'category': 'pictures',
          'series': 'defence',
          'filters': {'role': 'group'},
          'base': 0.0,
        },
      ),
      Plot(
        'radius',
        'interval_bars',
        'Accuracy behind PixelDefend on validation pictures, by the levels of '
        '255 that it may change a pixel by.',
        {
          'metric': VALID,
          'category': 'radius',
          'series': 'pictures',
          'filters': {'role': 'radius'},
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


class Measured:
  """The labels behind all defences, as figures."""

  def __init__(self, study: Study, labels: dict[str, np.ndarray]):
    """Keeps them.

    Args:
      study: The study.
      labels: What all cells gave.
    """
    self.study, self.labels = study, labels
    self.printed = record.printed('table5')

  def right(self, defence: str, kind: str, form: str = ROUNDED) -> np.ndarray:
    """Tells which pictures are classified correctly: bool[n] or bool[S, n]."""
    given = self.labels[f'{defence}/{form}/{kind}']
    return given == self.study.clean['test'].labels[: given.shape[-1]]

  def accuracy(
    self,
    defence: str,
    kind: str,
    n: int | None = None,
    *,
    form: str = ROUNDED,
    rows: np.ndarray | None = None,
  ) -> Estimate:
    """Computes the accuracy, with the printed number of all pictures.

    Args:
      defence: One of `DEFENCES`.
      kind: 'clean' or an attack.
      n: The first so many pictures; all there are by default.
      form: `ROUNDED` or `EXACT`.
      rows: bool[n], which of them count; all by default.
    """
    holds = self.right(defence, kind, form)[..., :n]
    source = self.study.clean['test'].source[: holds.shape[-1]]
    if rows is not None:
      return share_estimate(holds[..., rows], source[rows])
    place = (
      record.paper_dataset(self.study),
      PAPER_NAME.get(kind, 'Clean'),
      DEFENCES[defence],
    )
    return share_estimate(holds, source, self.printed.get(place))


def recovery_rows(measured: Measured, kinds) -> list[Row]:
  """Gives the accuracy behind every defence: rounded, not rounded, grouped."""
  attacked, rows = measured.study.attacked, []
  for defence, title in DEFENCES.items():
    n = measured.right(defence, 'clean').shape[-1]
    # Of one defence: they differ in how much training moves them.
    cells: dict[str, list[tuple[dict[str, Any], Estimate, int]]] = {}
    for kind in kinds:
      keys = {
        'role': 'recovery',
        'defence': title,
        'attack': PAPER_NAME.get(kind, 'Clean'),
      }

      def add(pictures, estimate, count, keys=keys, cells=cells):
        cell = (keys | {'pictures': pictures}, estimate, count)
        cells.setdefault(pictures, []).append(cell)

      add('all', measured.accuracy(defence, kind), n)
      if kind == 'clean':
        continue
      fooled = attacked[kind]['test'].success_uint8[:n]
      if fooled.any():
        estimate = measured.accuracy(defence, kind, rows=fooled)
        add('still adversarial', estimate, int(fooled.sum()))
      if defence in EXACT_DEFENCES:
        estimate = measured.accuracy(defence, kind, form=EXACT)
        add('before rounding', estimate._replace(paper=None), n)
    for parts in cells.values():
      each, estimates, numbers = zip(*parts, strict=True)
      rows += share_rows(each, record.ACCURACY, estimates, numbers)
    if defence == 'tvm_printed':
      continue  # A control, which the figure leaves out.
    groups = groups_of(kinds).items()
    rows += estimate_rows(
      [
        {'role': 'group', 'defence': title, 'pictures': group}
        for group, _ in groups
      ],
      record.ACCURACY,
      [
        mean([measured.accuracy(defence, kind) for kind in own])
        for _, own in groups
      ],
      n,
    )
  return rows


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
    share_row(
      {
        'role': 'own',
        'defence': DEFENCES[defence],
        'attack': PAPER_NAME[attack],
      },
      record.ACCURACY,
      labels[f'{defence}/own/{attack}'],
    )
    for defence in HARDENED
    for attack in rivals.TRAINED_WITH
  ]


def flag_rows(study: Study, labels, kinds) -> list[Row]:
  """Gives the share of pictures that the ensemble flags."""
  source, rows = study.clean['test'].source, []
  clean = [kind for kind in kinds if kind == 'clean']
  # False alarms vary less than what is found.
  for group in (clean, [kind for kind in kinds if kind != 'clean']):
    rows += share_rows(
      [
        {'role': 'flagged', 'pictures': PAPER_NAME.get(kind, 'Clean')}
        for kind in group
      ],
      'flagged (%)',
      [share_estimate(labels[f'flagged/{kind}'], source) for kind in group],
      [len(source)] * len(group),
    )
  return rows


def valid_rows(study: Study, labels) -> list[Row]:
  """Gives what the masking rate was chosen by, and how networks fared there."""
  n = len(study.clean['valid'].labels)
  rows = [
    Row(
      {'role': 'hardened', 'defence': DEFENCES[defence], 'pictures': pictures},
      VALID,
      float(labels[f'{defence}/{name}']),
      n=n,
    )
    for defence in HARDENED
    for name, pictures in (('kept', 'clean'), ('withstood', 'own attack'))
  ]
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
  for (mask, alpha), kept in zip(
    (*choices, UNMASKED), labels['kept'], strict=True
  ):
    masked = (mask, alpha) != UNMASKED
    rows.append(
      Row(
        {
          'role': 'kept',
          'reading': mask if masked else 'not masked',
          'alpha': f'{alpha:g}' if masked else '–',
        },
        repair.KEPT,
        float(kept),
        n=n,
      )
    )
  return rows


def radius_rows(study: Study, labels) -> list[Row]:
  """Gives what PixelDefend's radius was chosen by."""
  rows = []
  kinds = kinds_of(study.config)
  for radius, holds in zip(
    study.config.purified_radii, labels['pd/valid'], strict=True
  ):
    for group, own in groups_of(kinds).items():
      # Over kinds first: versions of one picture are no independent ones.
      shares = 100.0 * np.mean([holds[kinds.index(k)] for k in own], axis=0)
      low, high = mean_interval(shares)
      rows.append(
        Row(
          {'role': 'radius', 'radius': radius, 'pictures': group},
          VALID,
          float(shares.mean()),
          max(low, 0.0),
          min(high, 100.0),
          n=len(shares),
        )
      )
  return rows


class Settings(NamedTuple):
  """What is wrong with the settings of a run, a sentence each.

  Attributes:
    weak: Why detectors and f_rec are too weak for any claim.
    generous: {rival: why it is too weak a rival}.
  """

  weak: list[str]
  generous: dict[str, list[str]]


def settings_of(study: Study, labels) -> Settings:
  """Looks for what a claim cannot be tested with."""
  used = labels['kept'][[int(labels['chosen']), -1]]
  generous = {
    rival: rivals.unconverged(
      study,
      rival.removeprefix('at_'),
      float(labels[f'{rival}/kept']),
      float(labels[f'{rival}/withstood']),
    )
    for rival in HARDENED
  }
  return Settings(
    detection.too_weak(study, 'ensemble') + repair.forgets(used.min()),
    generous | {'pd': density_doubts(study)},
  )


# What was trained once of what the claims rest on.
ONCE = {
  'pd': ('PixelCNN++',),
  'at_ddn': ('AT_DDN',),
  'at_pgd': ('AT_PGD',),
}


def claims(accuracy, config: Config, settings: Settings) -> list[Claim]:
  """Judges what the paper says of Table 5."""
  attacks = config.attacks
  ask = functools.partial(judge, n=config.num_test, unfit=settings.weak)

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

  def surpasses(rival: str) -> Claim:
    n = config.purified_pictures if rival == 'pd' else config.num_test
    return ask(
      f'GCD surpasses {DEFENCES[rival]} on every attack',
      above('pipeline', rival, n),
      n=n,
      generous=settings.generous.get(rival, ()),
      once=ONCE.get(rival, ()),
    )

  return [
    ask(
      'The rectifier alone recovers more than the unprotected network has, for '
      'every attack',
      above('rectifier', 'none'),
    ),
    ask(
      'The rectifier alone recovers more than its classifier fine-tuned and '
      'asked without masks',
      above('rectifier', 'unmasked'),
    ),
    ask(
      'GCD recovers more than the unprotected network has, for every attack',
      above('pipeline', 'none'),
    ),
    *(surpasses(rival) for rival in RIVALS),
    ask(
      f'GCD keeps the accuracy on clean pictures (loss below {KEEPS:g} points)',
      [keeps('pipeline')],
    ),
    ask(
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


def tables(study: Study, chosen: Setting, labels) -> list[Table]:
  """Lays out the tables."""
  names = record.columns(study, study.config.attacks)
  mask, alpha = chosen
  config = study.config
  radius = config.purified_radii[int(labels['pd/chosen'])]
  length = rivals.max_norm(config) / 2

  def recovery(pictures: str, note: str) -> Table:
    return Table(
      f'Accuracy behind each defence, {pictures} attacked pictures',
      record.ACCURACY,
      ('defence',),
      'attack',
      columns=('Clean', *names),
      filters={'role': 'recovery', 'pictures': pictures},
      note=note,
    )

  return [
    recovery(
      'all',
      'Attacked for the undefended network F, rounded to 8 bit. All of these '
      'pictures are classified correctly by F when clean, so F has 100 there; '
      f'the paper seems to take all. GCD: alpha {alpha:g} as a {mask}, vote '
      f'over {config.num_draws} draws, mean over {config.num_seeds} trainings '
      f'of detectors and f_rec. PixelDefend: radius {radius}. TVM: what its '
      "authors' code minimises, and what their paper prints.",
    ),
    recovery(
      'still adversarial',
      'Only those that are a success after rounding, where F has 0.',
    ),
    Table(
      'Accuracy behind each defence, attacked pictures before rounding',
      record.ACCURACY,
      ('defence',),
      'attack',
      columns=names,
      filters={'role': 'recovery', 'pictures': 'before rounding'},
      note='As the attack left them. PixelDefend rounds by itself; TVM was not '
      'tried.',
    ),
    Table(
      'Accuracy of adversarially trained networks, attacked themselves',
      record.ACCURACY,
      ('defence',),
      'attack',
      columns=names,
      filters={'role': 'own'},
      note='DDN-U finds a change for almost any picture, so one counts up to '
      f'an L2 norm of {length:g}, half of what DDN training goes to.',
    ),
    Table(
      'Adversarially trained networks on validation pictures',
      VALID,
      ('defence',),
      'pictures',
      filters={'role': 'hardened'},
      note='Own attack: PGD-U for AT_PGD, DDN-U up to that norm for AT_DDN. '
      'All of these pictures are classified correctly by F.',
    ),
    Table(
      'Flagged by the ensemble of detectors',
      'flagged (%)',
      ('role',),
      'pictures',
      columns=('Clean', *names),
      filters={'role': 'flagged'},
    ),
    Table(
      'Choice of alpha and its reading',
      VALID,
      ('reading',),
      'alpha',
      filters={'role': 'choice'},
      note='Rectifier alone, mean over the attacks and the trainings; of rates '
      f'whose f_rec keeps {repair.KEEPS:g} % of the clean pictures, if there '
      'are any, the best one is taken.',
    ),
    repair.kept_table('F has all of them right.'),
    Table(
      "Choice of PixelDefend's radius",
      VALID,
      ('pictures',),
      'radius',
      columns=config.purified_radii,
      filters={'role': 'radius'},
      note='In levels of 255; taken is that of the best mean over clean '
      'pictures and every attack.',
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
      [title, f'seen as {names[labels[f"none/{ROUNDED}/{attack}"][row]]}'],
      ['suspects', f'{100 * suspects.mean():.1f} %'],
      [
        'masked, one draw',
        f'voted {names[labels[f"rectifier/{ROUNDED}/{attack}"][0, row]]}',
      ],
    ]
  if not pictures:
    return {}, []
  return {'examples': np.stack([repair.coloured(p) for p in pictures])}, [
    Plot(
      'examples',
      'titled_pictures',
      'The first test picture on which each attack has success: clean, '
      'attacked, with suspects in red, and with half of them replaced; over it '
      'the class that F sees, and over the masked one the vote of the '
      'rectifier.',
      {'pictures': 'examples', 'titles': titles},
    )
  ]
