"""Turning a weakness into a strength: how far a prediction is from others.

Attacked pictures are often unusual in one of two ways: noise changes their
prediction, or, where they were pushed deep into a class to withstand noise, it
takes many gradient steps to leave it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.classifier import as_pytree
from jaxadv.errors import UserError
from jaxadv.inputs import check_numbers, need_keys
from jaxadv.losses import cross_entropy, logit_of, margin
from jaxadv.metrics import roc
from jaxadv.norms import per_row
from jaxadv.types import (
  Batch,
  ClassifierLike,
  Detector,
  Images,
  Keys,
  Labels,
  Logits,
  Scores,
  checked_batches,
  make_detector,
  picture_keys,
)
from jaxadv.utils import check_range

# Counts are whole numbers: what exceeds one lies above the middle to the next.
_BETWEEN = np.array([0, 0.5, 0.5])


class Criteria(NamedTuple):
  """The three measures of pictures; all are larger for attacked ones.

  Attributes:
    noise: float32[B] in [0, 2], C1: the L1 distance of the softmax outputs
      with and without Gaussian noise.
    targeted: float32[B], C2t: gradient steps towards a random other class
      until the prediction changes.
    untargeted: float32[B], C2u: gradient steps away from the predicted class
      until the prediction changes.
  """

  noise: jax.Array
  targeted: jax.Array
  untargeted: jax.Array


class Thresholds(NamedTuple):
  """Operating points, each a threshold for every criterion.

  A point calls a picture attacked if a criterion exceeds its threshold. No
  threshold rises from one point to the next, so what a point finds the next
  ones find too.

  Attributes:
    values: float32[P, 3], the thresholds in the order of `Criteria`, from the
      point that finds nothing to one that finds everything.
    levels: float32[P], falling from 1 to 0 while the share of clean pictures
      that a point may find rises from 0 to 1.
  """

  values: jax.Array
  levels: jax.Array


class TWSState(NamedTuple):
  """What the detector knows of validation pictures.

  Attributes:
    thresholds: What criteria are held against.
    centre: float32[3], means of what stands in for the criteria in the
      surrogate, over the clean pictures.
    spread: float32[3], their standard deviations.
  """

  thresholds: Thresholds
  centre: jax.Array
  spread: jax.Array


class Tuned(NamedTuple):
  """Settings that `tune` found; `tws_detector(**tuned._asdict())` takes them.

  Attributes:
    sigma: Standard deviation of the noise, in image units.
    targeted_lr: Step size of C2t.
    untargeted_lr: Step size of C2u.
  """

  sigma: float
  targeted_lr: float
  untargeted_lr: float


def tws_detector(
  sigma: float = 0.01,
  targeted_lr: float = 5e-4,
  untargeted_lr: float = 1.0,
  *,
  radius: float = 0.5,
  targeted_cap: int = 200,
  untargeted_cap: int = 0,
) -> Detector:
  """Makes the detector of criteria, any of which may exceed its threshold.

  `choose_thresholds` finds the thresholds on validation pictures, clean and
  attacked. The score says how strict a point still finds a picture: about one
  minus the share of clean pictures that a user has to put up with. The
  paper's settings, which depend on data and network, so `tune` them:

    | network              | sigma | targeted_lr | untargeted_lr | radius |
    | CIFAR-10, VGG19      | 0.01  | 0.0005      | 1             | 0.5    |
    | ImageNet, ResNet101  | 0.1   | 0.005       | 0.1           | 0.03   |
    | ImageNet, Inception  | 0.1   | 0.005       | 3             | 0.03   |

  A score costs two forward passes and one gradient a step, until the slowest
  row of the batch is done: at most `targeted_cap + untargeted_cap`.

  Args:
    sigma: Standard deviation of the noise of C1 in image units, above 0. The
      noisy picture is not clipped.
    targeted_lr: What the gradient of the cross-entropy is multiplied by in a
      step of C2t, above 0.
    untargeted_lr: The same for C2u.
    radius: Largest change of a pixel in image units, in (0, 1].
    targeted_cap: Number of steps at which C2t ends; 0 leaves C2t out.
    untargeted_cap: Number of steps at which C2u ends, 1,000 in the paper; 0
      leaves C2u out, as the released code does: its thresholds for C2u are
      the cap, which no count exceeds.

  Returns:
    A `Detector` for deterministic classifiers of at least 2 classes. It
    learns from `valid` only. Scores lie in [0, 1]. The surrogate is
    differentiable: the largest of C1 (with the noise of the key) and, for the
    counts, of the difference of the logits that a step works on (the
    predicted class against the random one, or against the best other), each
    minus its mean over clean pictures and divided by its standard deviation.
    It is about 0 for clean pictures, and its zero is no threshold.

  Raises:
    UserError: If a hyperparameter lies outside its range, or (by `fit`)
      `valid` has no clean or no attacked picture. `fit` raises DataError if a
      criterion is NaN.

  Departs from the paper: one score in place of the thresholds of one share of
  clean pictures, see `choose_thresholds`.

  References:
    Hu et al., A New Defense Against Adversarial Images: Turning a Weakness
    into a Strength, 2019, https://arxiv.org/abs/1910.07629, section 4
    (criteria C1, C2t, C2u).
  """
  for name, value in (
    ('sigma', sigma),
    ('targeted_lr', targeted_lr),
    ('untargeted_lr', untargeted_lr),
  ):
    check_range(name, value, 0, float('inf'), open_low=True)
  check_range('radius', radius, 0, 1, open_low=True)
  check_range('targeted_cap', targeted_cap, 0, float('inf'))
  check_range('untargeted_cap', untargeted_cap, 0, float('inf'))
  measure = functools.partial(
    criteria,
    sigma=sigma,
    targeted_lr=targeted_lr,
    untargeted_lr=untargeted_lr,
    radius=radius,
    targeted_cap=targeted_cap,
    untargeted_cap=untargeted_cap,
  )
  active = np.array([True, targeted_cap > 0, untargeted_cap > 0])

  @jax.jit
  def learnt(
    keys: Keys, classifier: ClassifierLike, images: Images
  ) -> tuple[Criteria, jax.Array]:
    measured = measure(keys, classifier, images)
    return measured, _stand_ins(keys, classifier, images, sigma)

  def fit(
    key: jax.Array,
    classifier: Any,
    train: Iterable[Batch],
    valid: Iterable[Batch],
  ) -> TWSState:
    del train  # Thresholds are chosen on pictures that taught nobody.
    classifier = as_pytree(classifier)
    found = []
    kinds = []
    for batch in valid:
      rows = np.asarray(batch.mask)
      values = learnt(picture_keys(key, batch.source), classifier, batch.images)
      found.append(jax.tree.map(lambda x, rows=rows: x[rows], values))
      kinds.append(np.asarray(batch.kind)[rows])
    kind = _checked_kinds(kinds)
    measured, stand_ins = jax.tree.map(
      lambda *parts: np.concatenate(parts), *found
    )
    for values in (*measured, stand_ins):
      check_numbers(values, 'criteria')
    of_clean = stand_ins[kind == 0]
    # A criterion that never varies must not divide by 0.
    spread = np.maximum(of_clean.std(axis=0), 1e-6)
    caps = {'targeted_cap': targeted_cap, 'untargeted_cap': untargeted_cap}
    return TWSState(
      thresholds=choose_thresholds(measured, kind, **caps),
      centre=jnp.asarray(of_clean.mean(axis=0)),
      spread=jnp.asarray(spread),
    )

  def score(
    keys: Keys | None, classifier: Any, state: TWSState, images: Images
  ) -> Scores:
    keys = need_keys(keys, 'the TWS detector')
    return strictness(state.thresholds, measure(keys, classifier, images))

  def surrogate(
    keys: Keys | None, classifier: Any, state: TWSState, images: Images
  ) -> Scores:
    keys = need_keys(keys, 'the TWS detector')
    values = _stand_ins(keys, classifier, images, sigma)
    return jnp.max(((values - state.centre) / state.spread)[:, active], axis=-1)

  return make_detector(fit, score, surrogate)


def criteria(
  keys: Keys,
  classifier: ClassifierLike,
  images: Images,
  *,
  sigma: float | jax.Array,
  targeted_lr: float | jax.Array,
  untargeted_lr: float | jax.Array,
  radius: float | jax.Array,
  targeted_cap: int,
  untargeted_cap: int,
) -> Criteria:
  """Measures pictures; pure, jittable.

  Args:
    keys: key[B], one a picture: of its noise and its class to go to.
    classifier: A deterministic classifier of at least 2 classes.
    images: float32[B, H, W, C] in [0, 1].
    sigma: As of `tws`; may be traced, like the following three.
    targeted_lr: As of `tws`.
    untargeted_lr: As of `tws`.
    radius: As of `tws`.
    targeted_cap: As of `tws`; with 0, C2t is 0 everywhere.
    untargeted_cap: As of `tws`; with 0, C2u is 0 everywhere.

  Returns:
    The three criteria. A count of `cap` says that the prediction did not
    change in fewer steps, NaN that a logit was NaN.

  Raises:
    UserError: If the classifier has fewer than 2 classes.
  """
  logits = classifier(images)
  predicted = jnp.argmax(logits, axis=-1)
  count = functools.partial(
    _count_steps, classifier, images, predicted, radius=radius
  )
  targets = _other_classes(keys, logits, predicted)
  return Criteria(
    noise=_noise_distance(keys, classifier, images, logits, sigma),
    targeted=count(targets, -targeted_lr, cap=targeted_cap),
    untargeted=count(predicted, untargeted_lr, cap=untargeted_cap),
  )


def choose_thresholds(
  measured: Criteria,
  kind: np.ndarray,
  *,
  targeted_cap: int,
  untargeted_cap: int,
  num_points: int = 51,
) -> Thresholds:
  """Finds the thresholds that find most attacked pictures.

  For each share of clean pictures that may be found the paper's authors take
  the thresholds that find most attacked pictures while they find at most this
  share of the clean ones. Taken one by one, a laxer point may lose what a
  stricter one finds, and a picture has no score. So the points are chosen
  together: among all rows of points that follow one another, that with the
  largest sum of attacked shares. Where the best points of each share follow
  one another, as those do that the authors released, these are they. Of equal
  ones those that find fewer clean pictures are taken. Between two points that
  are far apart all thresholds fall in step.

  Args:
    measured: Criteria of N validation pictures, of which thresholds are taken.
    kind: int[N], 0 for clean pictures; the attacked share is the mean of those
      of the kinds of attack, however many pictures each has.
    targeted_cap: As of `tws`; the largest value that the criterion has.
    untargeted_cap: Likewise.
    num_points: Number of points, at least 2; their shares of clean pictures
      lie evenly from 0 to 1. Time and memory grow with its third power times
      itself, or its second where a criterion is left out.

  Returns:
    The thresholds, those of counts between two whole numbers.

  Raises:
    UserError: If there are no clean or no attacked pictures.
  """
  kind = _checked_kinds([kind])
  rates = np.linspace(0, 1, num_points)
  # Where no threshold stands the criterion finds nothing.
  tops = np.array([2.0, targeted_cap, untargeted_cap]) + _BETWEEN
  candidates, silent = [], []
  for values, top, between in zip(measured, tops, _BETWEEN, strict=True):
    column = np.asarray(values)
    of_clean = [roc.threshold_at_fpr(column[kind == 0], r) for r in rates]
    steps = np.maximum(of_clean, 0) + between
    candidates.append(np.array([top, *steps] if top > between else [top]))
    silent.append(column[:, None] <= candidates[-1])

  def found(rows: np.ndarray) -> np.ndarray:
    none = [side[rows].astype(np.float32) for side in silent]
    return 1 - np.einsum('na,nb,nc->abc', *none, optimize=True) / rows.sum()

  clean = found(kind == 0)
  attacked = np.mean([found(kind == k) for k in np.unique(kind) if k], axis=0)
  worth = attacked - 1e-6 * clean
  # The best sum of the points up to a rate, if the last is this triple.
  sums: list[np.ndarray] = []
  for rate in rates:
    before = sums[-1] if sums else np.zeros_like(worth)
    for axis in range(3):
      before = np.maximum.accumulate(before, axis=axis)
    sums.append(np.where(clean <= rate + 1e-6, worth + before, -np.inf))
  point = tuple(len(values) - 1 for values in candidates)
  points = [point]
  for total in reversed(sums):
    stricter = total[tuple(slice(0, i + 1) for i in point)]
    point = tuple(
      int(i) for i in np.unravel_index(stricter.argmax(), stricter.shape)
    )
    points.append(point)
  points.append((0, 0, 0))
  places, levels = _in_small_steps(np.array(points[::-1]))
  # A fixed size, so that nothing compiles anew: the first point is repeated.
  spare = 4 * len(points) - len(levels)
  places = np.pad(places, ((spare, 0), (0, 0)))
  levels = np.pad(levels, (spare, 0), constant_values=1)
  chosen = [c[i] for c, i in zip(candidates, places.T, strict=True)]
  return Thresholds(
    jnp.asarray(np.stack(chosen, axis=-1), jnp.float32),
    jnp.asarray(levels, jnp.float32),
  )


def _in_small_steps(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Puts points between those that are further apart than one candidate.

  Args:
    points: int[P, 3], places among the candidates, not falling.

  Returns:
    int[Q, 3], the places; and float64[Q], levels that fall evenly from 1 to 0
    over the given points.
  """
  levels = np.linspace(1, 0, len(points))
  rows = np.column_stack([points, levels])
  parts = [
    np.linspace(a, b, max(int(np.max(b - a)), 1), endpoint=False)
    for a, b in itertools.pairwise(rows)
  ]
  filled = np.concatenate([*parts, rows[-1:]])
  return np.rint(filled[:, :3]).astype(int), filled[:, 3]


def strictness(thresholds: Thresholds, measured: Criteria) -> jax.Array:
  """Scores pictures by the strictest point that finds them; pure, jittable.

  Args:
    thresholds: From `choose_thresholds`.
    measured: Criteria of B pictures.

  Returns:
    float32[B] in [0, 1]: the level of the point, and between two points by
    how far a criterion is on its way from one threshold to the other, so that
    pictures beyond all thresholds are still ordered. NaN stays.
  """
  levels = thresholds.levels[::-1]
  found = [
    jnp.interp(values, points[::-1], levels)
    for values, points in zip(measured, thresholds.values.T, strict=True)
  ]
  return jnp.max(jnp.stack(found), axis=0)


def tune(
  key: jax.Array,
  classifier: Any,
  valid: Iterable[Batch],
  *,
  sigmas: Sequence[float] = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2),
  targeted_lrs: Sequence[float] = (5e-4, 2e-3, 5e-3, 2e-2, 1e-1),
  untargeted_lrs: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0),
  radius: float = 0.5,
  targeted_cap: int = 200,
  untargeted_cap: int = 0,
) -> Tuned:
  """Finds the settings with which each criterion tells attacks best.

  Each is chosen by itself, by `mean_auc` of its criterion; of equal ones, and
  of a criterion that is left out, the first. One compilation for all.

  Args:
    key: One key.
    classifier: As of `criteria`.
    valid: Batches of clean pictures (kind 0) and attacked ones.
    sigmas: To choose `sigma` from, above 0.
    targeted_lrs: To choose `targeted_lr` from, above 0.
    untargeted_lrs: To choose `untargeted_lr` from, above 0.
    radius: As of `tws`.
    targeted_cap: As of `tws`.
    untargeted_cap: As of `tws`.

  Returns:
    The settings.

  Raises:
    UserError: If there are no clean or no attacked pictures, a list is empty,
      or a value not above 0.
    DataError: If a criterion is NaN.
  """
  choices = {
    'sigma': sigmas,
    'targeted_lr': targeted_lrs,
    'untargeted_lr': untargeted_lrs,
  }
  for name, values in choices.items():
    if not len(values):
      raise UserError(f'there is no {name} to choose from; give at least one')
    check_range(name, values, 0, float('inf'), open_low=True)
  classifier = as_pytree(classifier)
  measure = jax.jit(
    functools.partial(
      criteria,
      radius=radius,
      targeted_cap=targeted_cap,
      untargeted_cap=untargeted_cap,
    )
  )
  # One run tries a value of each; the shorter lists repeat their last.
  num_runs = max(len(values) for values in choices.values())
  runs = [
    {
      name: float(values[min(i, len(values) - 1)])
      for name, values in choices.items()
    }
    for i in range(num_runs)
  ]
  kinds = []
  found: list[list[Criteria]] = [[] for _ in runs]
  for batch in checked_batches(valid, 'valid'):
    mask = np.asarray(batch.mask)
    keys = picture_keys(key, batch.source)
    kinds.append(np.asarray(batch.kind)[mask])
    for parts, run in zip(found, runs, strict=True):
      measured = measure(keys, classifier, batch.images, **run)
      parts.append(jax.tree.map(lambda x, mask=mask: x[mask], measured))
  kind = _checked_kinds(kinds)
  aucs = np.array(
    [
      [mean_auc(np.concatenate(c), kind) for c in zip(*parts, strict=True)]
      for parts in found
    ]
  )
  best = aucs.argmax(axis=0)
  return Tuned(
    *(runs[row][name] for row, name in zip(best, choices, strict=True))
  )


def mean_auc(values: np.ndarray, kind: np.ndarray) -> float:
  """Averages the AUC over the kinds of attack, however many pictures each has.

  Args:
    values: float[N], larger for attacked pictures.
    kind: int[N], 0 for clean pictures.

  Returns:
    A number in [0, 1].

  Raises:
    UserError: If there are no clean or no attacked pictures.
    DataError: If a value is NaN.
  """
  kind = _checked_kinds([kind])
  rows = [np.isin(kind, (0, k)) for k in np.unique(kind) if k]
  return float(np.mean([roc.auc(values[r], kind[r] != 0) for r in rows]))


def _checked_kinds(parts: Sequence[np.ndarray]) -> np.ndarray:
  """Joins the kinds of pictures, among which have to be both sides."""
  kind = np.concatenate([np.zeros(0, int), *parts])
  attacked = np.count_nonzero(kind)
  if attacked in (0, kind.size):
    raise UserError(
      f'there are {attacked} attacked pictures of {kind.size} to choose '
      'thresholds and settings on; give some clean and some attacked ones'
    )
  return kind


def _named(key: jax.Array, use: str) -> jax.Array:
  """A picture's key for one of its uses."""
  return jax.random.fold_in(key, ('noise', 'class').index(use))


def _other_classes(
  keys: Keys, logits: Logits, predicted: jax.Array
) -> jax.Array:
  """Draws a class for every row, other than the predicted one."""
  num_classes = logits.shape[-1]
  if num_classes < 2:
    raise UserError(
      f'the classifier has {num_classes} class but tws goes to another one; '
      'give a classifier of at least 2 classes'
    )
  draw = lambda key: jax.random.randint(
    _named(key, 'class'), (), 0, num_classes - 1, jnp.int32
  )
  other = jax.vmap(draw)(keys)
  return other + (other >= predicted)


def _noise_distance(
  keys: Keys,
  classifier: ClassifierLike,
  images: Images,
  logits: Logits,
  sigma: float | jax.Array,
) -> jax.Array:
  """C1, differentiable with respect to the images."""
  draw = lambda key: jax.random.normal(
    _named(key, 'noise'), images.shape[1:], jnp.float32
  )
  noisy = classifier(images + sigma * jax.vmap(draw)(keys))
  return jnp.sum(
    jnp.abs(jax.nn.softmax(noisy) - jax.nn.softmax(logits)), axis=-1
  )


def _count_steps(
  classifier: ClassifierLike,
  images: Images,
  predicted: jax.Array,
  labels: Labels,
  lr: float | jax.Array,
  *,
  radius: float | jax.Array,
  cap: int,
) -> jax.Array:
  """C2: steps of size `lr` up the loss of `labels` until the label changes."""
  low = jnp.maximum(images - radius, 0)
  high = jnp.minimum(images + radius, 1)

  def unfinished(carry: Any) -> jax.Array:
    step, _, _, done, _ = carry
    return (step < cap) & ~jnp.all(done)

  def advance(carry: Any) -> Any:
    step, moved, count, done, broken = carry

    def loss(moved: jax.Array) -> tuple[jax.Array, jax.Array]:
      logits = classifier(moved)
      return jnp.sum(cross_entropy(logits, labels)), logits

    # The pass that gives the gradient also judges the step before it.
    gradient, logits = jax.grad(loss, has_aux=True)(moved)
    # A NaN is the largest to argmax: the label seems to have changed.
    broken |= jnp.any(jnp.isnan(logits), axis=-1) & ~done
    done |= jnp.argmax(logits, axis=-1) != predicted
    further = jnp.clip(moved + lr * gradient, low, high)
    moved = jnp.where(per_row(done, moved), moved, further)
    return step + 1, moved, count + ~done, done, broken

  rows = predicted.shape
  no = jnp.zeros(rows, bool)
  start = (0, images, jnp.zeros(rows, jnp.int32), no, no)
  _, _, count, _, broken = jax.lax.while_loop(unfinished, advance, start)
  return jnp.where(broken, jnp.nan, count.astype(jnp.float32))


def _stand_ins(
  keys: Keys,
  classifier: ClassifierLike,
  images: Images,
  sigma: float | jax.Array,
) -> jax.Array:
  """Differentiable values that rise and fall with the criteria: [B, 3]."""
  logits = classifier(images)
  predicted = jnp.argmax(logits, axis=-1)
  targets = _other_classes(keys, logits, predicted)
  ahead = logit_of(logits, predicted)
  return jnp.stack(
    [
      _noise_distance(keys, classifier, images, logits, sigma),
      ahead - logit_of(logits, targets),
      -margin(logits, predicted),
    ],
    axis=-1,
  )
