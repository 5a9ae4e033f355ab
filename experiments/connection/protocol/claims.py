"""The paper's claims C1 to C6 as comparisons of cells of the matrix.

A claim is a list of comparisons, each a difference that ought to be positive,
one or more a backbone; see `jaxadv.reports.verdicts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from experiments.connection.protocol.matrix import Matrix
from jaxadv.reports.record import Claim
from jaxadv.reports.verdicts import Comparison, judge
from jaxadv.sets.types import KINDS

# What "strong" transfer and "almost perfect" detection are taken to mean; the
# paper gives no figure.
STRONG = 80.0
ALMOST_PERFECT = 95.0


KIND = {kind.name: kind for kind in KINDS}


def in_category(category: str, matrix: Matrix) -> list[str]:
  """Lists the kinds of a category that the run has."""
  return [k for k in matrix.kinds if KIND[k].category == category]


def evaluate(
  matrix: Matrix, *, unseen: bool = True, faded: Sequence[str] = ()
) -> list[Claim]:
  """Answers the claims that a matrix can answer.

  Args:
    matrix: AUC of every detector on every kind.
    unseen: Whether C3 to C6, on kinds not trained on, are asked too.
    faded: Kinds whose pictures are hardly adversarial any more once they are
      rounded to 8 bit: C1 and C3 are asked without them as well.

  Returns:
    A claim each, in the order of the paper's specification.
  """
  faded = [kind for kind in faded if kind in matrix.kinds]
  claims = [*_both_ways(_seen_claim, matrix, faded), _crop_claim(matrix)]
  if unseen:
    claims += [
      *_both_ways(_category_claim, matrix, faded),
      _order_claim(
        matrix,
        'C4: detectors trained on natural kinds do better on semantic than on '
        'artificial kinds',
        'natural',
        'semantic',
        'artificial',
      ),
      _order_claim(
        matrix,
        'C5: detectors trained on semantic kinds do better on natural than on '
        'artificial kinds',
        'semantic',
        'natural',
        'artificial',
      ),
      _order_claim(
        matrix,
        'C6: detectors trained on artificial kinds do better on semantic than '
        'on natural kinds',
        'artificial',
        'semantic',
        'natural',
      ),
    ]
  return claims


def _both_ways(
  ask: Callable[[Matrix, Sequence[str]], Claim],
  matrix: Matrix,
  faded: Sequence[str],
) -> list[Claim]:
  """Asks a claim of all kinds, and of those that outlive rounding."""
  lasting = [kind for kind in matrix.kinds if kind not in faded]
  return [ask(matrix, kinds) for kinds in (matrix.kinds, lasting)][
    : 1 + bool(faded)
  ]


def _without(matrix: Matrix, kinds: Sequence[str]) -> str:
  """Says which kinds of a matrix a claim leaves out, for its text."""
  left = [KIND[k].paper for k in matrix.kinds if k not in kinds]
  return f' without {", ".join(left)}' if left else ''


def _seen_claim(matrix: Matrix, kinds: Sequence[str]) -> Claim:
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
  return judge(
    f'C1{_without(matrix, kinds)}: seen kinds are detected, FGSM easiest and '
    'DeepFool hardest of the artificial ones, NI+ and NI- almost perfectly',
    comparisons,
    n=matrix.num_tested,
  )


def _crop_claim(matrix: Matrix) -> Claim:
  comparisons = [
    Comparison(
      f'{backbone}: IN-A minus IN-A+',
      matrix.cell(backbone, 'natural', 'natural')
      - matrix.cell(backbone, 'natural_plus', 'natural_plus'),
    )
    for backbone in matrix.backbones
    if {'natural', 'natural_plus'} <= set(matrix.kinds)
  ]
  return judge(
    'C2: natural adversarial pictures are easier to detect than their '
    'foreground crops',
    comparisons,
    n=matrix.num_tested,
  )


def _category_claim(matrix: Matrix, asked: Sequence[str]) -> Claim:
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
  return judge(
    f'C3{_without(matrix, asked)}: transfer inside a category is strong (mean '
    f'AUC above {STRONG:.0f})',
    comparisons,
    n=matrix.num_tested,
  )


def _order_claim(
  matrix: Matrix, text: str, train: str, better: str, worse: str
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
  return judge(text, comparisons, n=matrix.num_tested)
