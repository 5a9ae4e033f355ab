"""What a run leaves: rows, tables, figures and the arrays behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.common.tables import ACCURACY, AUC, RATE, printed_numbers
from experiments.connection import networks
from experiments.connection.config import Config, is_published
from experiments.connection.detectors import SHARES, RunInputs
from experiments.connection.kinds import KINDS
from experiments.connection.matrix import (
  SHUFFLED_WITH,
  CellScores,
  Matrix,
)
from jaxadv.classifier import predict
from jaxadv.models.names import parse_network
from jaxadv.reports import (
  Plot,
  Row,
  Table,
  count_row,
  estimate_rows,
  share_row,
)

SPREAD = 'standard deviation over seeds (points)'
NUM_EXAMPLES = 6
# Share of the victim's accuracy that a backbone has to have.
LEARNT = 0.75
# Pictures of a kind from which detectors may learn less than there is to see;
# the paper's have 1,350.
FEW_TRAINED_ON = 400
# Share of its successes that a kind has to keep when pictures are rounded.
FADED = 0.5

PAPER_NAME = {kind.name: kind.paper for kind in KINDS} | {
  'reencoded': 're-encoded clean',
  'clean_other': 'other clean',
  'clean_other_plus': 'cropped clean',
  'clean_classes': 'clean of the same classes',
  'shuffled': 'shuffled labels',
}
BACKBONE_NAME = {
  'vgg16': 'VGG16',
  'densenet121': 'DenseNet121',
  'mobilenet': 'MobileNet',
  'inceptionv3': 'InceptionV3',
  'xception': 'Xception',
}
# Sets with pictures of ImageNet's training split.
SEEN = ('imagenet_sample', 'imagenette160')
CATEGORIES = ('natural', 'artificial', 'semantic')
# Clean pictures that have in common with natural ones what is not adversarial.
LOOK_ALIKES = ('clean_other', 'clean_other_plus', 'clean_classes')
# Kinds that come from other pictures than the clean ones.
OWN_SOURCES = ('natural', 'natural_plus', *LOOK_ALIKES)


def title(network: str, image_size: int) -> str:
  """Names a backbone as tables do.

  Args:
    network: `name:width:size`.
    image_size: Side of the pictures of the run.

  Returns:
    'VGG16 x0.25', or 'Xception x0.25 at 71 px' for one that the pictures are
    resized for.
  """
  name, width, _ = parse_network(network)
  size = parse_network(network).size_for(image_size)
  shown = BACKBONE_NAME.get(name, name)
  shown += '' if width == 1 else f' x{width:g}'
  return shown if size == image_size else f'{shown} at {size} px'


def groups(kinds: Sequence[str]) -> dict[str, list[str]]:
  """Orders kinds by category: {category: names as the paper writes them}."""
  return {
    category: [
      k.paper for k in KINDS if k.category == category and k.name in kinds
    ]
    for category in CATEGORIES
  }


def printed(table: str) -> dict[tuple[str, ...], float]:
  """Reads printed numbers: {(backbone, trained on, tested on): number}."""
  return printed_numbers(str(Path(__file__).parent), table)


def printed_cells(
  backbones: Sequence[str], kinds: Sequence[str]
) -> dict[tuple[str, str, str], float]:
  """Gives the printed AUCs as a `Matrix` takes them.

  Args:
    backbones: Titles; the printed number of any width is that of the paper's.
    kinds: The kinds of the run.
  """
  paper = printed('table1')
  found = {
    (network, trained, tested): paper.get(
      (network.split(' ')[0], PAPER_NAME[trained], PAPER_NAME[tested])
    )
    for network in backbones
    for trained in kinds
    for tested in kinds
  }
  return {place: value for place, value in found.items() if value is not None}


def auc_rows(matrix: Matrix, *, unseen: bool) -> list[Row]:
  """Gives the rows of the matrix of kinds: all of it, or its diagonal."""
  rows = []
  for network in matrix.backbones:
    pairs = [
      (trained, tested)
      for trained in matrix.kinds
      for tested in (matrix.kinds if unseen else [trained])
    ]
    cells = [matrix.cell(network, *pair) for pair in pairs]
    keys = [
      {
        'backbone': network,
        'trained_on': PAPER_NAME[trained],
        'tested_on': PAPER_NAME[tested],
        'role': 'kind',
        'seen': trained == tested,
      }
      for trained, tested in pairs
    ]
    n = matrix.num_tested
    rows += estimate_rows(keys, AUC, cells, n)
    rows += [
      Row(own, SPREAD, float(np.std(cell.trainings, ddof=1)), n=n)
      for own, cell in zip(keys, cells, strict=True)
      if len(cell.trainings) > 1
    ]
  return rows


def faded_kinds(inputs: RunInputs) -> list[str]:
  """Lists the kinds of which rounding leaves less than half adversarial."""
  return [
    kind
    for kind in inputs.config.attacks
    if (found := inputs.collection.sets[kind]).success.mean()
    < FADED * found.success_float.mean()
  ]


def control_rows(inputs: RunInputs, matrix: Matrix) -> list[Row]:
  """Gives the AUCs that ought to hold 50, and those on clean look-alikes."""
  sets = inputs.collection.sets
  controls = [
    ('shuffled', SHUFFLED_WITH),
    ('reencoded', 'reencoded'),
    *[(c, c) for c in LOOK_ALIKES if c in sets],
    *[
      (kind, control)
      for kind in matrix.kinds
      for control in LOOK_ALIKES
      if control in sets and kind in ('natural', 'natural_plus')
    ],
  ]
  return [
    row
    for network in matrix.backbones
    for row in estimate_rows(
      [
        {
          'backbone': network,
          'control': f'trained on {PAPER_NAME[trained]}, '
          f'tested on {PAPER_NAME[tested]}',
          'role': 'control',
          'column': 'AUC',
        }
        for trained, tested in controls
      ],
      AUC,
      [matrix.cell(network, *pair) for pair in controls],
      matrix.num_tested,
    )
  ]


def untrained(inputs: RunInputs, matrix: Matrix) -> list[str]:
  """Says which backbones have not learnt the classes of the data set."""
  victim = inputs.collection.victim.accuracy
  shares = {name: matrix.accuracy(name) for name in matrix.backbones}
  return [
    f'{name} is right on {found.value:.0f} % of the held-out pictures, the '
    f'victim on {100 * victim:.0f} %'
    for name, found in shares.items()
    if found and victim and found.value < 100 * LEARNT * victim
  ]


def trained_on_few(config: Config) -> list[str]:
  """Says whether detectors learn from too few pictures to be judged by."""
  trained_on = round(SHARES[0] * config.num_pictures)
  if trained_on >= FEW_TRAINED_ON:
    return []
  return [
    f'detectors learn from {trained_on} pictures of a kind, fewer than '
    f'{FEW_TRAINED_ON}'
  ]


def picture_rows(inputs: RunInputs, matrix: Matrix) -> list[Row]:
  """Gives accuracies of the networks and success rates of the kinds."""
  rows = []
  backbones = {name: matrix.accuracy(name) for name in matrix.backbones}
  trained = {name: found for name, found in backbones.items() if found}
  collection = inputs.collection
  networks = {f'victim ({inputs.config.victim})': collection.victim}
  for name, reference in zip(
    inputs.config.reference, collection.references, strict=False
  ):
    networks[f'reference ({name})'] = reference
  n = len(inputs.heldout.labels)
  for role, network in networks.items():
    if network.accuracy is None:  # Its classes are others.
      continue
    rows.append(
      count_row(
        {'network': role, 'column': 'held out'},
        ACCURACY,
        round(network.accuracy * n),
        n,
      )
    )
  rows += estimate_rows(
    [
      {'network': f'backbone ({name})', 'column': 'held out'}
      for name in trained
    ],
    ACCURACY,
    list(trained.values()),
    n,
  )
  for kind in inputs.config.attacks:
    found = inputs.collection.sets[kind]
    for column, success in (
      ('before rounding', found.success_float),
      ('as 8-bit pictures', found.success),
    ):
      rows.append(
        share_row({'kind': PAPER_NAME[kind], 'column': column}, RATE, success)
      )
  return rows


def tables(
  inputs: RunInputs, kinds: Sequence[str], *, unseen: bool
) -> list[Table]:
  """Lays the rows out, the paper's table first."""
  columns = tuple(name for names in groups(kinds).values() for name in names)
  if unseen:
    main = Table(
      title='Unseen adversaries (Table 1)',
      metric=AUC,
      row_labels=('trained_on',),
      column='tested_on',
      split='backbone',
      columns=columns,
      filters={'role': 'kind'},
      note='Cells trained and tested on one kind are the seen adversaries of '
      'Figure 4, for which the paper prints no numbers. Values: mean over '
      f'{inputs.config.num_seeds} trainings of backbone and detectors. '
      'Intervals: resampled source pictures, and the variance of training '
      'pooled over the table; not that of victim and reference, which define '
      'the task. n: test pictures of the kind, and as many clean ones.'
      + caveats(inputs),
    )
  else:
    main = Table(
      title='Seen adversaries (Figure 4)',
      metric=AUC,
      row_labels=('backbone',),
      column='trained_on',
      columns=columns,
      filters={'role': 'kind'},
      note='Trained and tested on one kind; the paper prints no numbers in '
      'its Figure 4.' + caveats(inputs),
    )
  return [
    main,
    Table(
      title='Pictures that fool the network they were made or chosen against',
      metric=RATE,
      row_labels=('kind',),
      column='column',
      note=(
        'Natural kinds: errors of the victim, which did not choose them. '
        if inputs.config.natural_dataset
        else 'Natural kinds are errors of a reference by construction. '
      )
      + 'NI does not look at any network. HSV keeps its last trial when none '
      'succeeds.',
    ),
    Table(
      title='Networks',
      metric=ACCURACY,
      row_labels=('network',),
      column='column',
      note='On the held-out pictures; backbones: mean over their trainings.'
      + caveats(inputs),
    ),
    Table(
      title='Negative controls',
      metric=AUC,
      row_labels=('control',),
      column='backbone',
      filters={'role': 'control'},
      note='Shuffled labels: every source picture has a random label that its '
      'clean and its re-encoded version share; above 50 only if sources leak '
      'across the split. '
      'Re-encoded clean: clean pictures after the whole path of an attacked '
      'one. Other clean: '
      + (
        "pictures of the data set's training split"
        if inputs.config.natural_dataset
        else 'held-out pictures the reference gets right'
      )
      + '; cropped clean: their foreground crops, which are as cropped as '
      'IN-A+ but not adversarial.',
      control=True,
    ),
  ]


def caveats(inputs: RunInputs) -> str:
  """Says what the choice of networks keeps the run from telling."""
  names = networks.networks_of(inputs.config)
  found = []
  families = {parse_network(name).name for name in names}
  if len(families) == 1:
    family = BACKBONE_NAME.get(*families, *families)
    found.append(
      f'Victim, reference and backbones are all of one family, {family}: what '
      'they have in common, other networks may lack.'
    )
  config = inputs.config
  if config.dataset in SEEN and any(is_published(config, n) for n in names):
    found.append(
      'Networks with published weights have probably seen these pictures in '
      'training.'
    )
  choosers = {config.victim, *config.reference}
  shared = [
    title(n, config.image_size) for n in config.backbones if n in choosers
  ]
  if shared:
    found.append(
      f'{" and ".join(shared)} also chose the pictures: clean ones that the '
      'victim gets right, natural ones that a reference gets wrong. What a '
      'backbone itself gets wrong may be easier for it to detect.'
    )
  return ' '.join(['', *found])


def figures(inputs: RunInputs, matrix: Matrix, *, unseen: bool) -> list[Plot]:
  """Says which figures to draw."""
  drawn = []
  if unseen:
    drawn += [
      Plot(
        name=f'transfer-{slug(network)}',
        kind='transfer_matrix',
        caption=f'AUC of detectors on {network}, trained on one kind (row) and '
        'tested on another (column); framed: the same kind. In parentheses '
        'the printed number of the backbone of that name.',
        options={
          'metric': AUC,
          'filters': {'backbone': network, 'role': 'kind'},
          'title': network,
          'groups': groups(matrix.kinds),
        },
      )
      for network in matrix.backbones
    ]
  drawn.append(
    Plot(
      name='seen',
      kind='interval_bars',
      caption='AUC on the kind that the detector was trained on (Figure 4), '
      'with 95 % intervals.',
      options={
        'metric': AUC,
        'category': 'trained_on',
        'series': 'backbone',
        'filters': {'role': 'kind', 'seen': True},
        'title': 'Seen adversaries',
      },
    )
  )
  drawn.append(
    Plot(
      name='roc',
      kind='roc_curves',
      caption='ROC curves on the kind that the detector was trained on, first '
      'seed.',
      options={
        'panels': {
          network: {
            PAPER_NAME[kind]: [
              f'roc/{network}/{kind}/{side}' for side in ('clean', 'attacked')
            ]
            for kind in matrix.kinds
          }
          for network in matrix.backbones
        }
      },
    )
  )
  drawn.append(
    Plot(
      name='examples',
      kind='example_pictures',
      caption='Pictures of every kind: clean, attacked, and the change '
      'made visible around grey. Natural kinds have no clean version. Labels: '
      'true class, then what the victim (natural kinds: a reference) says.',
      options={
        'kinds': [PAPER_NAME[kind] for kind in matrix.kinds],
        'labels': example_labels(inputs, matrix.kinds),
        'without_clean': [
          PAPER_NAME[k] for k in matrix.kinds if k in OWN_SOURCES
        ],
      },
    )
  )
  return drawn


def arrays(
  inputs: RunInputs,
  matrix: Matrix,
  cells: dict[str, list[CellScores]],
) -> dict[str, np.ndarray]:
  """Gives the scores and pictures behind the figures."""
  found = {}
  for network in matrix.backbones:
    for seed, scores in enumerate(cells[network]):
      place = f'scores/{network}/seed{seed}'
      found[place] = scores.scores
      found[f'{place}/sources'] = scores.sources
    for kind in matrix.kinds:
      clean, attacked, *_ = cells[network][0].positives(kind, kind)
      found[f'roc/{network}/{kind}/clean'] = clean
      found[f'roc/{network}/{kind}/attacked'] = attacked
  sets = inputs.collection.sets
  chosen = [sets[kind].images[:NUM_EXAMPLES] for kind in matrix.kinds]
  found['examples/attacked'] = np.stack(chosen)
  found['examples/clean'] = np.stack(
    [sets['clean'].images[:NUM_EXAMPLES]] * len(chosen)
  )
  return found


def example_labels(inputs: RunInputs, kinds: Sequence[str]) -> list:
  """Gives (true class, predicted class) of the example pictures."""
  labels = []
  for kind in kinds:
    found = inputs.collection.sets[kind]
    network = inputs.collection.victim
    chosen = not inputs.config.natural_dataset and kind in OWN_SOURCES
    asked = inputs.collection.references if chosen else (network,)
    guesses = np.stack(
      [
        predict(n.classifier, found.images[:NUM_EXAMPLES]).argmax(-1)
        for n in asked
      ]
    )
    # The answer of the first network that errs.
    wrong = guesses != found.labels[:NUM_EXAMPLES]
    guessed = guesses[wrong.argmax(0), np.arange(guesses.shape[1])]
    names = inputs.heldout.class_names
    labels.append(
      [
        (names[a], names[b])
        for a, b in zip(found.labels[:NUM_EXAMPLES], guessed, strict=True)
      ]
    )
  return labels


def slug(network: str) -> str:
  """Writes the title of a backbone so that it can be part of a file name."""
  return network.lower().replace(' ', '-')
