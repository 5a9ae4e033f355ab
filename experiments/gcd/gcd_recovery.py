"""Table 5: accuracy behind the rectifier and behind the defences of others."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.common.runner import CellCode, ReportParts
from experiments.common.tables import ACCURACY
from experiments.gcd import (
  baseline_defences,
  detectors,
  repair,
  report,
)
from experiments.gcd.baseline_detectors import density, density_doubts
from experiments.gcd.config import (
  MINIMAL,
  PAPER_NAME,
  TRAINING_ATTACKS,
  Config,
  get_config,
)
from experiments.gcd.pictures import RunInputs, stream
from experiments.gcd.plan import plan
from experiments.gcd.repair import UNMASKED, Masking
from experiments.gcd.run import run_gcd
from jaxadv.classifier import predict
from jaxadv.defences import rectifier
from jaxadv.defences.pixel_defend import pixel_defend
from jaxadv.defences.total_variance import total_variance
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
from jaxadv.runs import Cell
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
OTHERS = ('pd', 'at_ddn', 'at_pgd', 'tvm')
ADVERSARIALLY_TRAINED = ('at_ddn', 'at_pgd')
# With several trainings.
TRAINED = ('rectifier', 'unmasked', 'pipeline')
# Whether attacked pictures are rounded, as everywhere else, or as the attack
# left them, of which the paper says nothing.
ROUNDED, EXACT = '8 bit', 'float'
# PixelDefend rounds by itself; TVM costs as much again.
EXACT_DEFENCES = ('none', *TRAINED, *ADVERSARIALLY_TRAINED)
# Loss of clean accuracy that still counts as keeping it, in points.
KEEPS = 2.0
VALID = 'accuracy on validation pictures (%)'


def cells(config: Config) -> list[Cell]:
  """Lists the cells of a run: the paper's defence and each of the others."""
  del config
  return [Cell(name, {'defence': name}) for name in CELLS]


def run(config: Config, workdir: str) -> Record | None:
  """Runs the experiment and writes its report; see `run_gcd`."""
  return run_gcd(
    config,
    workdir,
    name='gcd_recovery',
    question=QUESTION,
    cells=cells(config),
    code=CellCode(run_cell),
    describe=describe,
  )


def run_cell(
  inputs: RunInputs, cell: Cell, report_progress
) -> dict[str, np.ndarray]:
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
    return repair_all(inputs, report_progress)
  if cell.name == 'pd':
    return pixel_defend_all(inputs, report_progress)
  if cell.name.startswith('tvm'):
    released = cell.name == 'tvm'
    purifier = total_variance(objective='released' if released else 'printed')
    n = inputs.config.num_test
    report_progress(f'{DEFENCES[cell.name]} on {n} pictures of each kind', 0.0)
    labels = purify(inputs, purifier, (), 'test', n)
    return {f'{cell.name}/{ROUNDED}/{k}': v for k, v in labels.items()}
  attack = cell.name.removeprefix('at_')
  report_progress(f'adversarial training with {PAPER_NAME[attack]}', 0.0)
  classifier = baseline_defences.adversarially_trained(inputs, attack)
  found: dict[str, Any] = {
    f'{cell.name}/{form}/{kind}': predict(
      classifier, images, inputs.config.batch_size
    ).argmax(-1)
    for kind, form, images in test_pictures(inputs)
  }
  for own in TRAINING_ATTACKS:
    report_progress(f'{DEFENCES[cell.name]} attacked by {PAPER_NAME[own]}')
    found[f'{cell.name}/own/{own}'] = baseline_defences.robust(
      inputs, classifier, own, 'test'
    )
  robust_share = baseline_defences.robust(inputs, classifier, attack, 'valid')
  return found | {
    f'{cell.name}/kept': np.array(repair.kept(inputs, classifier)),
    f'{cell.name}/withstood': np.array(100 * robust_share.mean()),
  }


def kinds_of(config: Config) -> tuple[str, ...]:
  """Names clean pictures and the attacks."""
  return ('clean', *config.attack_names)


def test_pictures(inputs: RunInputs) -> list[tuple[str, str, np.ndarray]]:
  """Lists kind, form and test pictures of everything that is recovered."""
  rounded = [
    (kind, ROUNDED, repair.side_images(inputs, kind, 'test'))
    for kind in kinds_of(inputs.config)
  ]
  return rounded + [
    (attack, EXACT, repair.exact_images(inputs, attack))
    for attack in inputs.config.attack_names
  ]


def purify(
  inputs: RunInputs, purifier: Purifier, state: Any, side: str, n: int
) -> dict[str, np.ndarray]:
  """Classifies the first n pictures of each kind behind a purifier."""
  kinds = kinds_of(inputs.config)
  # All kinds together: a batch costs little more than a picture.
  labels = baseline_defences.purified_labels(
    inputs,
    purifier,
    state,
    np.concatenate([repair.side_images(inputs, k, side)[:n] for k in kinds]),
    np.tile(inputs.clean[side].source[:n], len(kinds)),
  )
  return dict(zip(kinds, np.split(labels, len(kinds)), strict=True))


def pixel_defend_all(
  inputs: RunInputs, report_progress
) -> dict[str, np.ndarray]:
  """Chooses PixelDefend's radius, and purifies the test pictures.

  Nobody tells a defender how far attacks go, so the radius is that of the best
  mean accuracy over clean pictures and every attack.

  Returns:
    'pd/FORM/KIND', int[n]; 'pd/valid', bool[R, K, n], whether validation
    pictures of each kind are classified correctly at each radius; and
    'pd/chosen', the row of the radius taken.
  """
  config = inputs.config
  report_progress('PixelCNN++', 0.0)
  module, state, _ = density(inputs)
  truth = inputs.clean['valid'].labels[: config.purified_valid]
  purifiers = [pixel_defend(module, int(r)) for r in config.radii]
  valid = []
  for radius, purifier in zip(config.radii, purifiers, strict=True):
    report_progress(
      f'PixelDefend at radius {radius} on validation pictures', 0.0
    )
    labels = purify(
      inputs,
      purifier,
      state,
      'valid',
      config.purified_valid,
    )
    valid.append([given == truth for given in labels.values()])
  chosen = int(np.argmax(np.mean(valid, axis=(1, 2))))
  n, radius = config.purified_pictures, config.radii[chosen]
  report_progress(
    f'PixelDefend at radius {radius} on {n} pictures of each kind', 0.0
  )
  labels = purify(inputs, purifiers[chosen], state, 'test', n)
  return {f'pd/{ROUNDED}/{kind}': own for kind, own in labels.items()} | {
    'pd/valid': np.array(valid),
    'pd/chosen': np.array(chosen),
  }


def repair_all(inputs: RunInputs, report_progress) -> dict[str, np.ndarray]:
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
  report_progress('detectors', 0.0)
  seeds = range(inputs.config.num_seeds)
  scores = [repair.pooled_score(inputs, 'ensemble', seed) for seed in seeds]
  tuned = [
    repair.all_fine_tuned(inputs, scores[seed], seed, report_progress)
    for seed in seeds
  ]
  kept = np.mean(
    [[repair.kept(inputs, c) for c in own.values()] for own in tuned], axis=0
  )
  controls = [own.pop(UNMASKED) for own in tuned]
  choices = list(tuned[0])
  valid = np.mean(
    [
      [
        list(
          repair.valid_hits(
            inputs, attack, score, own, report_progress
          ).values()
        )
        for attack in inputs.config.attack_names
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
  source = inputs.clean['test'].source
  for kind, form, images in test_pictures(inputs):
    report_progress(f'rectifier on {kind}, {form}')
    plain = predict(
      inputs.victim.classifier, images, inputs.config.batch_size
    ).argmax(-1)
    each: dict[str, list[np.ndarray]] = {}
    for seed in seeds:
      seen = repair.logits_and_gradients(scores[seed], images)
      asked = {
        'rectifier': (setting, tuned[seed][setting]),
        'unmasked': (UNMASKED, controls[seed]),
      }
      labels = {
        name: repair.repaired(
          inputs, images, source, seen, own, classifier
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
          found |= example(inputs, kind, images, seen, setting)
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


def example(inputs: RunInputs, kind: str, images, seen, setting: Masking):
  """Keeps the first picture that the attack changed with success.

  Returns:
    The picture, its suspects, one draw of the mask, and the share of suspects;
    nothing if there is no success.
  """
  if kind == 'clean':
    return {}
  rows = np.flatnonzero(inputs.attacked[kind]['test'].success)[:1]
  if not len(rows):
    return {}
  mask_rule, alpha = setting
  image = to_float(images[rows])
  salient_pixels = rectifier.salient_pixels(
    repair.standing_in(seen.gradient[rows]), image, alpha, mask_rule=mask_rule
  )
  key = stream(inputs.config, 'rectifier')
  keys = picture_keys(key, jnp.asarray(inputs.clean['test'].source[rows]))
  masked = rectifier.mask_pixels(keys, image, salient_pixels).images
  return {
    f'example/{kind}/row': rows[0],
    f'example/{kind}/suspects': np.asarray(salient_pixels)[0],
    f'example/{kind}/masked': np.uint8(np.round(255 * masked[0])),
  }


def describe(inputs: RunInputs, found: dict[str, Any]) -> ReportParts:
  """Says which defence recovers what."""
  labels = {k: v for cell in found.values() for k, v in cell.items()}
  kinds = kinds_of(inputs.config)
  measured = Measured(inputs, labels)
  examples, drawings = example_pictures(inputs, labels)
  chosen = repair.settings(inputs.config.alphas)[int(labels['chosen'])]
  rows = [
    *recovery_rows(measured, kinds),
    *own_rows(labels),
    *flag_rows(inputs, labels, kinds),
    *valid_rows(inputs, labels),
    *radius_rows(inputs, labels),
  ]
  return ReportParts(
    claims=claims(
      measured.accuracy, inputs.config, settings_of(inputs, labels)
    ),
    rows=rows + report.picture_rows(inputs),
    answer=answer(measured.accuracy, inputs.config, chosen),
    tables=tables(inputs, chosen, labels),
    figures=[
      Plot(
        'recovery',
        'interval_bars',
        'Accuracy behind each defence on clean pictures, and its mean over '
        'the attacks of a norm; pictures attacked for the undefended network. '
        'F: no defence. GCD: what the ensemble flags is rectified.',
        {
          'metric': ACCURACY,
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
      for kind in inputs.config.attack_names
      if not inputs.attacked[kind]['test'].success.any()
    ],
  )


class Measured:
  """The labels behind all defences, as figures."""

  def __init__(self, inputs: RunInputs, labels: dict[str, np.ndarray]):
    """Keeps them.

    Args:
      inputs: The inputs of the run.
      labels: What all cells gave.
    """
    self.study, self.labels = inputs, labels
    self.printed = report.printed('table5')

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
      report.paper_dataset(self.study),
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
      fooled = attacked[kind]['test'].success[:n]
      if fooled.any():
        estimate = measured.accuracy(defence, kind, rows=fooled)
        add('still adversarial', estimate, int(fooled.sum()))
      if defence in EXACT_DEFENCES:
        estimate = measured.accuracy(defence, kind, form=EXACT)
        add('before rounding', estimate._replace(paper=None), n)
    for parts in cells.values():
      each, estimates, numbers = zip(*parts, strict=True)
      rows += share_rows(each, ACCURACY, estimates, numbers)
    if defence == 'tvm_printed':
      continue  # A control, which the figure leaves out.
    groups = groups_of(kinds).items()
    rows += estimate_rows(
      [
        {'role': 'group', 'defence': title, 'pictures': group}
        for group, _ in groups
      ],
      ACCURACY,
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
  """Gives the accuracy after adversarial training on attacks made for it."""
  return [
    share_row(
      {
        'role': 'own',
        'defence': DEFENCES[defence],
        'attack': PAPER_NAME[attack],
      },
      ACCURACY,
      labels[f'{defence}/own/{attack}'],
    )
    for defence in ADVERSARIALLY_TRAINED
    for attack in TRAINING_ATTACKS
  ]


def flag_rows(inputs: RunInputs, labels, kinds) -> list[Row]:
  """Gives the share of pictures that the ensemble flags."""
  source, rows = inputs.clean['test'].source, []
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


def valid_rows(inputs: RunInputs, labels) -> list[Row]:
  """Gives what the masking rate was chosen by, and how networks fared there."""
  n = len(inputs.clean['valid'].labels)
  rows = [
    Row(
      {'role': 'hardened', 'defence': DEFENCES[defence], 'pictures': pictures},
      VALID,
      float(labels[f'{defence}/{name}']),
      n=n,
    )
    for defence in ADVERSARIALLY_TRAINED
    for name, pictures in (('kept', 'clean'), ('withstood', 'own attack'))
  ]
  choices = repair.settings(inputs.config.alphas)
  for (mask_rule, alpha), shares in zip(choices, labels['valid'], strict=True):
    rows.append(
      Row(
        {'role': 'choice', 'reading': mask_rule, 'alpha': f'{alpha:g}'},
        VALID,
        100 * float(shares.mean()),
        *mean_interval(100 * shares),
        n=len(shares),
      )
    )
  for (mask_rule, alpha), kept in zip(
    (*choices, UNMASKED), labels['kept'], strict=True
  ):
    masked = (mask_rule, alpha) != UNMASKED
    rows.append(
      Row(
        {
          'role': 'kept',
          'reading': mask_rule if masked else 'not masked',
          'alpha': f'{alpha:g}' if masked else '–',
        },
        repair.KEPT,
        float(kept),
        n=n,
      )
    )
  return rows


def radius_rows(inputs: RunInputs, labels) -> list[Row]:
  """Gives what PixelDefend's radius was chosen by."""
  rows = []
  kinds = kinds_of(inputs.config)
  for radius, holds in zip(
    inputs.config.radii, labels['pd/valid'], strict=True
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


def settings_of(inputs: RunInputs, labels) -> Settings:
  """Looks for what a claim cannot be tested with."""
  used = labels['kept'][[int(labels['chosen']), -1]]
  generous = {
    rival: baseline_defences.unconverged(
      inputs,
      rival.removeprefix('at_'),
      float(labels[f'{rival}/kept']),
      float(labels[f'{rival}/withstood']),
    )
    for rival in ADVERSARIALLY_TRAINED
  }
  return Settings(
    detectors.too_weak(inputs, 'ensemble') + repair.forgets(used.min()),
    generous | {'pd': density_doubts(inputs)},
  )


# What was trained once of what the claims rest on.
ONCE = {
  'pd': ('PixelCNN++',),
  'at_ddn': ('AT_DDN',),
  'at_pgd': ('AT_PGD',),
}


def claims(accuracy, config: Config, settings: Settings) -> list[Claim]:
  """Judges what the paper says of Table 5."""
  attacks = config.attack_names
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
    *(surpasses(rival) for rival in OTHERS),
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


def answer(accuracy, config: Config, chosen: Masking) -> str:
  """Answers the question in a sentence."""
  mask_rule, alpha = chosen
  parts = [
    f'{title} '
    f'{np.mean([accuracy(name, a).value for a in config.attack_names]):.1f} %'
    for name, title in DEFENCES.items()
  ]
  return (
    f'Mean accuracy over the attacks: {", ".join(parts)}; alpha {alpha:g} as a '
    f'{mask_rule}, chosen on validation pictures.'
  )


def tables(inputs: RunInputs, chosen: Masking, labels) -> list[Table]:
  """Lays out the tables."""
  names = report.columns(inputs, inputs.config.attack_names)
  mask_rule, alpha = chosen
  config = inputs.config
  radius = config.radii[int(labels['pd/chosen'])]
  length = baseline_defences.max_norm(config) / 2

  def recovery(pictures: str, report_progress: str) -> Table:
    return Table(
      f'Accuracy behind each defence, {pictures} attacked pictures',
      ACCURACY,
      ('defence',),
      'attack',
      columns=('Clean', *names),
      filters={'role': 'recovery', 'pictures': pictures},
      note=report_progress,
    )

  return [
    recovery(
      'all',
      'Attacked for the undefended network F, rounded to 8 bit. All of these '
      'pictures are classified correctly by F when clean, so F has 100 there; '
      f'the paper seems to take all. GCD: alpha {alpha:g} as a {mask_rule}, '
      f'vote over {config.num_draws} draws, mean over {config.num_seeds} '
      f'trainings of detectors and f_rec. PixelDefend: radius {radius}. TVM: '
      "what its authors' code minimises, and what their paper prints.",
    ),
    recovery(
      'still adversarial',
      'Only those that are a success after rounding, where F has 0.',
    ),
    Table(
      'Accuracy behind each defence, attacked pictures before rounding',
      ACCURACY,
      ('defence',),
      'attack',
      columns=names,
      filters={'role': 'recovery', 'pictures': 'before rounding'},
      note='As the attack left them. PixelDefend rounds by itself; TVM was not '
      'tried.',
    ),
    Table(
      'Accuracy of adversarially trained networks, attacked themselves',
      ACCURACY,
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
      columns=config.radii,
      filters={'role': 'radius'},
      note='In levels of 255; taken is that of the best mean over clean '
      'pictures and every attack.',
    ),
    *report.picture_tables(inputs),
  ]


def example_pictures(inputs: RunInputs, labels):
  """Shows what the rectifier does to the first success of every attack.

  Returns:
    The arrays and the figures.
  """
  names = inputs.train.class_names
  pictures: list[np.ndarray] = []
  titles: list[list[str]] = []
  for attack in inputs.config.attack_names:
    if f'example/{attack}/row' not in labels:
      continue
    row, title = int(labels[f'example/{attack}/row']), PAPER_NAME[attack]
    image = inputs.attacked[attack]['test'].images[row]
    salient_pixels = labels[f'example/{attack}/suspects']
    pictures += [
      inputs.clean['test'].images[row],
      image,
      repair.marked(image, salient_pixels),
      labels[f'example/{attack}/masked'],
    ]
    titles += [
      ['clean', f'class {names[inputs.clean["test"].labels[row]]}'],
      [title, f'seen as {names[labels[f"none/{ROUNDED}/{attack}"][row]]}'],
      ['suspects', f'{100 * salient_pixels.mean():.1f} %'],
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
