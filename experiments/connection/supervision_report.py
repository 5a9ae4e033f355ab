"""What Figures 5 and 6 say: how test pictures are called, judged and shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.common.tables import ACCURACY, AUC
from experiments.connection import claims, report
from experiments.connection.matrix import CellScores, Matrix
from experiments.connection.report import CATEGORIES, PAPER_NAME
from jaxadv import reports
from jaxadv.errors import UserError
from jaxadv.identifiers import backbone as identifiers
from jaxadv.metrics.estimates import (
  Estimate,
  mean,
  over_trainings,
  share_estimates,
)
from jaxadv.reports import Claim, Row, Table, estimate_rows
from jaxadv.reports.verdicts import Comparison
from jaxadv.reports.verdicts import judge as verdict

GAIN = 'gain in accuracy (points)'
CALLED = 'share of the pictures (%)'
NAMED = 'attacks named right (%)'
FALSE_ALARMS = 'called adversarial (%)'
# The column of the average over the kinds of a category.
MEAN = 'mean'
# Over detectors of a single artificial kind; which, the paper does not say.
PRINTED_GAINS = (0.47, 7.17)


class Supervised(NamedTuple):
  """What one cell of the run leaves.

  Attributes:
    single: Scores of the detectors of single kinds, logits.
    logits: {category: float32[S, M, 1 + N]} of its identifier on the same
      test pictures.
  """

  single: CellScores
  logits: dict[str, np.ndarray]


class Judged(NamedTuple):
  """How often test pictures were called what, in per cent, mean over seeds.

  Attributes:
    accuracy: {(backbone, category, trained on, tested on)}: accuracy, clean
      and attacked counting the same; tested on a kind or their `MEAN`.
    called: {(backbone, category, set, class)}: share that the identifier
      takes for a class, 'clean' or a kind.
    false_alarms: {(backbone, category, clean set)}: share that it takes for
      any kind.
  """

  accuracy: dict[tuple[str, str, str, str], Estimate]
  called: dict[tuple[str, str, str, str], Estimate]
  false_alarms: dict[tuple[str, str, str], Estimate]


def categories(kinds: Sequence[str]) -> dict[str, list[str]]:
  """Gives the categories with several kinds: {category: kinds}.

  Raises:
    UserError: If there is none.
  """
  found = {
    category: own
    for category in CATEGORIES
    if len(own := [k for k in kinds if claims.KIND[k].category == category]) > 1
  }
  if not found:
    raise UserError(
      f'--attacks has no two kinds of one category ({", ".join(kinds)}); '
      'supervision by the kinds needs two, such as fgsm,pgd'
    )
  return found


def everything(category: str) -> str:
  """Names an identifier as tables do: 'all natural'."""
  return f'all {category}'


def with_identifiers(results: Sequence[Supervised]) -> list[CellScores]:
  """Puts identifiers, by their score of any attack, beside the detectors."""
  return [
    single._replace(
      trained=(*single.trained, *map(everything, logits)),
      scores=np.concatenate(
        [
          single.scores,
          *(identifiers.attack_score(found)[None] for found in logits.values()),
        ]
      ),
    )
    for single, logits in results
  ]


def judge(
  results: Mapping[str, Sequence[Supervised]],
  wanted: Mapping[str, Sequence[str]],
) -> Judged:
  """Counts how test pictures are called.

  A detector calls a picture adversarial at a logit above 0, an identifier if
  its most likely class is not the clean one.

  Args:
    results: The results of each backbone, one element a seed.
    wanted: {category: kinds}.

  Returns:
    The shares with bootstrap draws; all of one backbone share the resamples
    of a category, so differences are paired.
  """
  found = Judged({}, {}, {})
  for network, seeds in results.items():
    first = seeds[0].single
    for category, kinds in wanted.items():
      places = [first.tested.index(name) for name in ('clean', *kinds)]
      sources = first.sources[places]
      for trained in (*kinds, everything(category)):
        called = [_called(seed, category, trained)[places] for seed in seeds]
        clean, *attacked = _shares(called, sources)
        kept = 100 - clean
        each = [mean([kept, hit]) for hit in attacked]
        for kind, estimate in zip(
          (*kinds, MEAN), (*each, mean(each)), strict=True
        ):
          found.accuracy[network, category, trained, kind] = estimate
      guessed = [seed.logits[category].argmax(-1) for seed in seeds]
      for index, name in enumerate(('clean', *kinds)):
        shares = _shares([own[places] == index for own in guessed], sources)
        for true, estimate in zip(('clean', *kinds), shares, strict=True):
          found.called[network, category, true, name] = estimate
      for name in first.tested:
        if name not in claims.KIND:
          row = [first.tested.index(name)]
          found.false_alarms[network, category, name] = _shares(
            [own[row] != 0 for own in guessed], first.sources[row]
          )[0]
  return found


def _called(result: Supervised, category: str, trained: str) -> np.ndarray:
  """Tells which test pictures are called adversarial, bool[S, M]."""
  if trained == everything(category):
    return identifiers.called_attacked(result.logits[category])
  return result.single.scores[result.single.trained.index(trained)] > 0


def _shares(holds: Sequence[np.ndarray], sources: np.ndarray) -> list[Estimate]:
  """Gives the share of each set in per cent, from bool[S, M] of each seed."""
  each = [share_estimates(list(own), list(sources)) for own in holds]
  return [over_trainings(seeds) for seeds in zip(*each, strict=True)]


def gains(
  judged: Judged, category: str, kinds: Sequence[str]
) -> dict[tuple[str, str], Estimate]:
  """Gives {(backbone, kind): accuracy of all kinds minus that of the kind}."""
  accuracy, paper = judged.accuracy, report.printed('figure6')
  found = {}
  for network in dict.fromkeys(place[0] for place in accuracy):
    together = accuracy[network, category, everything(category), MEAN]
    for kind in kinds:
      gain = together - accuracy[network, category, kind, MEAN]
      over = f'minus {PAPER_NAME[kind]}'
      place = (_plain(network), everything(category), over)
      found[network, kind] = gain._replace(paper=paper.get(place))
  return found


def evaluate(
  judged: Judged,
  wanted: Mapping[str, Sequence[str]],
  n: int,
  unfit: Sequence[str] = (),
) -> list[Claim]:
  """Answers claim C7, once for each category.

  Args:
    judged: The accuracies.
    wanted: {category: kinds}; C7 is not tested on other categories.
    n: Test pictures of a kind.
    unfit: Why C7 cannot be tested, if it cannot.

  Returns:
    A claim each.
  """
  return [
    verdict(
      f'C7, {category} kinds: a network that learns all of them as classes '
      'detects them better than one that learns a single one (accuracy, '
      'averaged over the kinds)',
      [
        Comparison(
          f'{network}: all minus {PAPER_NAME[kind]}',
          estimate,
        )
        for (network, kind), estimate in (
          gains(judged, category, wanted[category]).items()
          if category in wanted
          else ()
        )
      ],
      n=n,
      unfit=unfit,
    )
    for category in CATEGORIES
  ]


def rows(
  judged: Judged,
  matrix: Matrix,
  wanted: Mapping[str, Sequence[str]],
) -> list[Row]:
  """Gives the measured figures.

  Args:
    judged: Accuracies and names given.
    matrix: AUC of detectors and identifiers.
    wanted: {category: kinds}.
  """
  paper = report.printed('figure6')
  # What stands in one table, over which the variance of training is pooled.
  cells: dict[tuple[str, str, str], list[tuple[dict[str, str], Estimate]]] = {}

  def shown(name: str) -> str:
    return PAPER_NAME.get(name, name)

  def add(role, metric, estimate, **keys):
    place = (role, metric, keys['category'])
    cells.setdefault(place, []).append((keys | {'role': role}, estimate))

  for (network, category, trained, tested), estimate in judged.accuracy.items():
    keys = {
      'backbone': network,
      'category': category,
      'trained_on': shown(trained),
      'tested_on': shown(tested),
    }
    printed = paper.get((_plain(network), shown(trained), tested))
    add('supervision', ACCURACY, estimate._replace(paper=printed), **keys)
    kinds = wanted[category] if tested == MEAN else [tested]
    auc = mean([matrix.cell(network, trained, kind) for kind in kinds])
    add('supervision', AUC, auc, **keys)
  for category, kinds in wanted.items():
    for (network, kind), estimate in gains(judged, category, kinds).items():
      keys = {'backbone': network, 'category': category, 'over': shown(kind)}
      add('gain', GAIN, estimate, **keys)
    for network in matrix.backbones:
      right = [judged.called[network, category, k, k] for k in kinds]
      keys = {'backbone': network, 'category': category}
      add('named', NAMED, mean(right), **keys)
  for (network, category, true, name), estimate in judged.called.items():
    keys = {
      'backbone': network,
      'category': category,
      'true_class': shown(true),
      'called': shown(name),
    }
    add('naming', CALLED, estimate, **keys)
  for (network, category, name), estimate in judged.false_alarms.items():
    keys = {'backbone': network, 'category': category, 'pictures': shown(name)}
    add('alarm', FALSE_ALARMS, estimate, **keys)
  return [
    row
    for (_, metric, _), own in cells.items()
    for row in estimate_rows(
      [keys for keys, _ in own],
      metric,
      [estimate for _, estimate in own],
      matrix.num_tested,
    )
  ]


def _plain(network: str) -> str:
  """Gives the name of a backbone without its width, as the paper has it."""
  return network.split(' ')[0]


def tables(wanted: Mapping[str, Sequence[str]]) -> list[Table]:
  """Lays the rows out, Figure 6 first."""
  low, high = PRINTED_GAINS
  columns = (MEAN, *(PAPER_NAME[k] for own in wanted.values() for k in own))
  accuracy = Table(
    title='N+1-way supervision (Figure 6)',
    metric=ACCURACY,
    row_labels=('backbone', 'trained_on'),
    column='tested_on',
    split='category',
    columns=columns,
    filters={'role': 'supervision'},
    note='Clean and attacked test pictures count the same. Trained on one '
    'kind: adversarial at a logit above 0. All: adversarial if the most '
    'likely class is not the clean one. The paper does not name its '
    'backbone; its number stands at VGG16.',
  )
  return [
    accuracy,
    dataclasses.replace(
      accuracy,
      title='N+1-way supervision, free of thresholds',
      metric=AUC,
      note='All: scored by 1 - p(clean). Mean: of the AUCs of the kinds.',
    ),
    Table(
      title='What learning all kinds of a category gains over one',
      metric=GAIN,
      row_labels=('backbone',),
      column='over',
      split='category',
      columns=columns,
      filters={'role': 'gain'},
      decimals=2,
      note='Differences of the means of Figure 6, on the same resamples. Of '
      f'the artificial kinds the paper prints gains of {low} to {high} '
      'without saying over which, of the semantic ones none.',
    ),
    Table(
      title='Which kind the network names (classes of Figure 5)',
      metric=CALLED,
      row_labels=('backbone', 'true_class'),
      column='called',
      split='category',
      columns=('clean', *columns[1:]),
      filters={'role': 'naming'},
      note='Lines add up to 100.',
    ),
    Table(
      title='Attacks called by their own kind',
      metric=NAMED,
      row_labels=('backbone',),
      column='category',
      filters={'role': 'named'},
      note='Mean over the kinds of the category.',
    ),
    Table(
      title='Clean pictures that the network takes for adversarial',
      metric=FALSE_ALARMS,
      row_labels=('backbone', 'category'),
      column='pictures',
      filters={'role': 'alarm'},
      note='Re-encoded clean pictures have gone the whole path of attacked '
      'ones; other clean and cropped clean pictures come from where IN-A and '
      'IN-A+ do, but are not adversarial.',
      control=True,
    ),
  ]


def figures(
  backbones: Sequence[str], wanted: Mapping[str, Sequence[str]]
) -> list[reports.Plot]:
  """Says which figures to draw: Figure 6, and the names given."""
  drawn = []
  for network in backbones:
    slug = report.slug(network)
    for category in wanted:
      filters = {'backbone': network, 'category': category}
      drawn.append(
        reports.Plot(
          name=f'accuracy-{category}-{slug}',
          kind='interval_bars',
          caption=f'Accuracy of {network} on {category} kinds, trained on one '
          'of them or on all as classes (Figure 6), with 95 % intervals.',
          options={
            'metric': ACCURACY,
            'category': 'tested_on',
            'series': 'trained_on',
            'filters': filters | {'role': 'supervision'},
            'title': f'{network}, {category} kinds',
          },
        )
      )
      drawn.append(
        reports.Plot(
          name=f'names-{category}-{slug}',
          kind='interval_bars',
          caption=f'What {network}, trained on all {category} kinds, takes '
          'pictures of each class for (the classes of Figure 5); any class '
          'but clean counts as adversarial.',
          options={
            'metric': CALLED,
            'category': 'true_class',
            'series': 'called',
            'filters': filters | {'role': 'naming'},
            'base': 0.0,
            'title': f'{network}, names of {category} kinds',
          },
        )
      )
  return drawn


def arrays(
  results: Mapping[str, Sequence[Supervised]],
) -> dict[str, np.ndarray]:
  """Gives the scores and logits behind the rows."""
  found = {}
  for network, seeds in results.items():
    for number, (single, logits) in enumerate(seeds):
      place = f'{network}/seed{number}'
      found[f'scores/{place}'] = single.scores
      found[f'sources/{place}'] = single.sources
      for category, own in logits.items():
        found[f'logits/{place}/{category}'] = own
  return found


def answer(judged: Judged, wanted: Mapping[str, Sequence[str]]) -> str:
  """Answers the question in a sentence, with means over the backbones."""
  parts = []
  for category, kinds in wanted.items():
    average = lambda trained, category=category: np.mean(
      [
        estimate.value
        for place, estimate in judged.accuracy.items()
        if place[1] == category and place[2] in trained and place[3] == MEAN
      ]
    )
    parts.append(
      f'{average([everything(category)]):.1f} % against {average(kinds):.1f} % '
      f'on {category} kinds'
    )
  return (
    'Mean accuracy of a network that learns all kinds of a category against '
    f'networks that learn one of them: {", ".join(parts)}.'
  )
