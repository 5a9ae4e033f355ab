"""The paper's claims C1 to C6 as comparisons of cells of the matrix.

A claim is a list of comparisons, each a difference that ought to be positive,
one or more a backbone; see `jaxadv.reports.verdicts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from experiments.connection.kinds import KINDS
from experiments.connection.matrix import Matrix
from jaxadv.metrics.estimates import mean
from jaxadv.reports.record import Claim
from jaxadv.reports.verdicts import Comparison, judge

# What "strong" transfer and "almost perfect" detection are taken to mean; the
# paper gives no figure.
STRONG = 80.0
ALMOST_PERFECT = 95.0
# Mean AUC on the kinds that detectors learnt, below which what they make of
# others says nothing; the paper's have 93.
WEAK = 90.0

# `judge` of a run.
Ask = Callable[[str, Sequence[Comparison]], Claim]
KIND = {kind.name: kind for kind in KINDS}


def in_category(category: str, matrix: Matrix) -> list[str]:
  """Lists the kinds of a category that the run has."""
  return [k for k in matrix.kinds if KIND[k].category == category]


def evaluate(
  matrix: Matrix,
  *,
  unseen: bool = True,
  faded: Sequence[str] = (),
  unfit: Sequence[str] = (),
  harsh: Sequence[str] = (),
) -> list[Claim]:
  """Answers the claims that a matrix can answer.

  Args:
    matrix: AUC of every detector on every kind.
    unseen: Whether C3 to C6, on kinds not trained on, are asked too.
    faded: Kinds whose pictures are hardly adversarial any more once they are
      rounded to 8 bit: C1 and C3 are asked without them as well.
    unfit: Why no claim can be tested, if none can.
    harsh: Why seen kinds may be found less well than they could be, if so: C1
      may hold then, but not fail.

  Returns:
    A claim each, in the order of the paper's specification.
  """
  faded = [kind for kind in faded if kind in matrix.kinds]
  ask = partial(judge, n=matrix.num_tested, unfit=unfit)
  lasting = [kind for kind in matrix.kinds if kind not in faded]
  # All kinds, and those that outlive rounding.
  ways = [matrix.kinds, lasting] if faded else [matrix.kinds]
  claims = [
    _seen_claim(partial(ask, harsh=harsh), matrix, kinds) for kinds in ways
  ]
  claims.append(_crop_claim(ask, matrix))
  if unseen:
    ask = partial(ask, unfit=[*unfit, *weak(matrix, lasting)])
    claims += [
      *(_category_claim(ask, matrix, kinds) for kinds in ways),
      _order_claim(
        ask,
        matrix,
        'C4: detectors trained on natural kinds do better on semantic than on '
        'artificial kinds',
        'natural',
        'semantic',
        'artificial',
      ),
      _order_claim(
        ask,
        matrix,
        'C5: detectors trained on semantic kinds do better on natural than on '
        'artificial kinds',
        'semantic',
        'natural',
        'artificial',
      ),
      _order_claim(
        ask,
        matrix,
        'C6: detectors trained on artificial kinds do better on semantic than '
        'on natural kinds',
        'artificial',
        'semantic',
        'natural',
      ),
    ]
  return claims


def weak(matrix: Matrix, kinds: Sequence[str]) -> list[str]:
  """Says which detectors are too weak for their transfer to mean anything."""
  means = {
    backbone: mean([matrix.cell(backbone, kind, kind) for kind in kinds])
    for backbone in matrix.backbones
  }
  low = [
    f'{found.value:.1f} ({backbone})'
    for backbone, found in means.items()
    if found.value < WEAK
  ]
  if not low:
    return []
  return [
    'the mean AUC on the kinds that detectors learnt is '
    f'{", ".join(low)}, below {WEAK:.0f}'
  ]


def _without(matrix: Matrix, kinds: Sequence[str]) -> str:
  """Says which kinds of a matrix a claim leaves out, for its text."""
  left = [KIND[k].paper for k in matrix.kinds if k not in kinds]
  return f' without {", ".join(left)}' if left else ''


def _seen_claim(ask: Ask, matrix: Matrix, kinds: Sequence[str]) -> Claim:
  comparisons = []
  for backbone in matrix.backbones:
    seen = {k: matrix.cell(backbone, k, k) for k in kinds}
    pairs = [('fgsm', 'pgd'), ('pgd', 'deepfool')]
    comparisons += [
      Comparison(
        f'{backbone}: {KIND[a].paper} minus {KIND[b].paper}',
        seen[a] - seen[b],
      )
      for a, b in pairs
      if a in seen and b in seen
    ]
    comparisons += [
      Comparison(
        f'{backbone}: {KIND[k].paper} minus {ALMOST_PERFECT:.0f}',
        seen[k] - ALMOST_PERFECT,
      )
      for k in ('ni_plus', 'ni_minus')
      if k in seen
    ]
  return ask(
    f'C1{_without(matrix, kinds)}: seen kinds are detected, FGSM easiest and '
    'DeepFool hardest of the artificial ones, NI+ and NI- almost perfectly',
    comparisons,
  )


def _crop_claim(ask: Ask, matrix: Matrix) -> Claim:
  comparisons = [
    Comparison(
      f'{backbone}: IN-A minus IN-A+',
      matrix.cell(backbone, 'natural', 'natural')
      - matrix.cell(backbone, 'natural_plus', 'natural_plus'),
    )
    for backbone in matrix.backbones
    if {'natural', 'natural_plus'} <= set(matrix.kinds)
  ]
  return ask(
    'C2: natural adversarial pictures are easier to detect than their '
    'foreground crops',
    comparisons,
  )


def _category_claim(ask: Ask, matrix: Matrix, asked: Sequence[str]) -> Claim:
  comparisons = []
  for backbone in matrix.backbones:
    for category in ('natural', 'artificial', 'semantic'):
      kinds = [k for k in in_category(category, matrix) if k in asked]
      if len(kinds) > 1:
        comparisons.append(
          Comparison(
            f'{backbone}: {category} minus {STRONG:.0f}',
            matrix.unseen_mean(backbone, kinds, kinds) - STRONG,
          )
        )
  return ask(
    f'C3{_without(matrix, asked)}: transfer inside a category is strong (mean '
    f'AUC above {STRONG:.0f})',
    comparisons,
  )


def _order_claim(
  ask: Ask, matrix: Matrix, text: str, train: str, better: str, worse: str
) -> Claim:
  kinds = {c: in_category(c, matrix) for c in (train, better, worse)}
  comparisons = [
    Comparison(
      f'{backbone}: {better} minus {worse}',
      matrix.unseen_mean(backbone, kinds[train], kinds[better])
      - matrix.unseen_mean(backbone, kinds[train], kinds[worse]),
    )
    for backbone in matrix.backbones
    if all(kinds.values())
  ]
  return ask(text, comparisons)
