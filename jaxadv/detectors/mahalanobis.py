"""Mahalanobis distances to the classes, in the features of several layers."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from jaxadv.classifier import Classifier, as_pytree
from jaxadv.data.batching import map_batches
from jaxadv.data.pipeline import split_by_source
from jaxadv.detectors.logistic import fit_logistic
from jaxadv.errors import DataError, DoubtWarning, UserError
from jaxadv.inputs import as_uint8
from jaxadv.metrics import roc
from jaxadv.norms import l2, per_row, unit_l2
from jaxadv.types import (
  Batch,
  Detector,
  Images,
  Keys,
  Scores,
  checked_batches,
  make_detector,
  picture_keys,
)
from jaxadv.utils import check_range

MAGNITUDES = (0.0, 0.0005, 0.001, 0.0014, 0.002, 0.005, 0.01)

_NUM_FOLDS = 5
# As scikit-learn's LogisticRegressionCV, which the authors use.
_INVERSE_PENALTIES = np.logspace(-4, 4, 10)


class Gaussians(NamedTuple):
  """The classes in one layer: normal distributions of one shared covariance.

  In coordinates in which the covariance is the unit matrix, so that distances
  are Euclidean and do not suffer from rounding.

  Attributes:
    origin: float32[D], the mean over all pictures.
    whiten: float32[D, D]; its product with its transpose is the precision.
    means: float32[K, D], whitened means of the classes that were seen.
  """

  origin: jax.Array
  whiten: jax.Array
  means: jax.Array


class MahalanobisState(NamedTuple):
  """What the detector has learnt.

  Attributes:
    gaussians: By name of layer.
    magnitude: float32[], of the input pre-processing, in image units.
    weights: float32[], by name of layer, of their confidences.
    bias: float32[].
  """

  gaussians: dict[str, Gaussians]
  magnitude: jax.Array
  weights: dict[str, jax.Array]
  bias: jax.Array


def mahalanobis_detector(
  layers: Sequence[str],
  *,
  magnitudes: Sequence[float] = MAGNITUDES,
  ridge: float = 1e-6,
  reference: Iterable[Batch] | None = None,
  batch_size: int = 128,
) -> Detector:
  """Makes the detector of Mahalanobis confidences, one a layer.

  Clean pictures give, for each layer, the means of the classes and one shared
  covariance of its features, averaged over space. The confidence of a picture
  is the largest of -(z - mu)^T P (z - mu) / 2 over the classes, after every
  pixel was moved by `magnitude` so as to raise it. A logistic regression,
  its regularisation chosen by 5-fold cross-validation (versions of a picture
  in one fold), weighs the layers: attacked against clean and randomly noised
  pictures. The noised ones are clean ones plus Gaussian noise of the very
  norm of the attack on that picture. The magnitude is that with the best AUC
  on `valid`.

  A score costs one forward pass, and where the magnitude is above 0 one
  gradient and one more forward pass a layer. Fitting costs for each picture a
  gradient a layer and a forward pass a layer and magnitude, and holds all
  pictures in memory.

  Args:
    layers: Names of layers, as of `classifier.features`; at least one.
    magnitudes: To choose from, in image units, each in [0, 1]. The authors'
      steps in a normalised input, divided by the channels' deviations, come
      out as the same numbers in image units.
    ridge: What the diagonal of a singular covariance is raised by, as a share
      of its mean, above 0.
    reference: Batches of clean pictures with labels that means and covariances
      are estimated from, such as those that the classifier was trained on;
      those that occur in `train` or `valid` are left out, since distances of
      the pictures that gave the covariance are too small. Without it they
      come from the clean half of a random half of the sources of `train`, and
      the logistic regression from the other half.
    batch_size: Pictures at a time while fitting.

  Returns:
    A `Detector` for deterministic classifiers with named layers. Scores are
    logits of the logistic regression, and differentiable: the direction of
    the pre-processing counts as constant.

  Raises:
    UserError: If a hyperparameter lies outside its range, or (by `fit`) there
      are versions of fewer than 5 attacked or clean pictures to learn from,
      none to validate on, or no other clean ones for the covariances. `fit`
      raises DataError for features that are not finite.

  Warns:
    DoubtWarning: By `fit`, if pictures for the covariances were left out.

  Departs from the paper: the confidences are standardised before the logistic
  regression; what fits it are training pictures, not part of the test
  material. Attacked pictures without their clean version among the rows have
  no noised counterpart. The ridge.

  Example:
    >>> detector = mahalanobis_detector(('block1', 'block3', 'block5'))
    >>> state = detector.fit(key, classifier, train, valid)
    >>> scores = detector.score(None, classifier, state, images)

  References:
    Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution
    Samples and Adversarial Attacks, 2018, https://arxiv.org/abs/1807.03888,
    section 2, equations 1 and 2, algorithm 1.
  """
  layers = tuple(layers)
  if not layers:
    raise UserError('layers are empty; name at least one layer of the network')
  if not len(magnitudes):
    raise UserError('magnitudes are empty; give at least 0')
  check_range('magnitudes', magnitudes, 0, 1)
  check_range('ridge', ridge, 0, float('inf'), open_low=True)
  check_range('batch_size', batch_size, 1, float('inf'))
  magnitudes = tuple(sorted(magnitudes))
  features = jax.jit(functools.partial(layer_features, layers=layers))

  @jax.jit
  def over_magnitudes(
    classifier: Classifier, gaussians: dict[str, Gaussians], images: Images
  ) -> jax.Array:
    towards = directions(classifier, gaussians, images)
    values = jax.lax.map(
      lambda size: moved_confidences(
        classifier, gaussians, images, towards, size
      ),
      jnp.asarray(magnitudes, jnp.float32),
    )
    # float32[B, M, L]
    return jnp.stack([values[name].T for name in layers], axis=-1)

  def fit(
    key: jax.Array,
    classifier: Any,
    train: Iterable[Batch],
    valid: Iterable[Batch],
  ) -> MahalanobisState:
    classifier = as_pytree(classifier)
    key_split, key_noise = jax.random.split(key)
    rows = _collect(train)
    if reference is None:
      seed = int(jax.random.randint(key_split, (), 0, 2**31 - 1, jnp.int32))
      halves = split_by_source(seed, np.asarray(rows.source), (0.5, 0.5))
      known, rows = (_take(rows, half) for half in halves)
    else:
      known = _collect(checked_batches(reference, 'reference'))
    chooses = _collect(valid)
    known = _others(known, (rows, chooses))
    found = map_batches(
      lambda images: features(classifier, images),
      known.images,
      batch_size=batch_size,
    )
    gaussians = {
      name: fit_gaussians(values, np.asarray(known.labels), ridge)
      for name, values in found.items()
    }
    sets = []
    for some in (rows, chooses):
      noised = noised_like(key_noise, some)
      some = jax.tree.map(lambda *c: np.concatenate(c), some, noised)
      values = map_batches(
        lambda images: over_magnitudes(classifier, gaussians, images),
        some.images,
        batch_size=batch_size,
      )
      _check_finite(values, 'confidences of pictures')
      attacked = np.asarray(some.kind) != 0
      sets.append(_Scored(values, attacked, np.asarray(some.source)))
    best, weights, bias = _weigh_layers(*sets)
    return MahalanobisState(
      gaussians,
      jnp.float32(magnitudes[best]),
      dict(zip(layers, jnp.asarray(weights, jnp.float32), strict=True)),
      jnp.float32(bias),
    )

  def score(
    keys: Keys | None,
    classifier: Classifier,
    state: MahalanobisState,
    images: Images,
  ) -> Scores:
    del keys  # Nothing in it is random.
    gaussians = state.gaussians

    def moved() -> dict[str, jax.Array]:
      towards = directions(classifier, gaussians, images)
      return moved_confidences(
        classifier, gaussians, images, towards, state.magnitude
      )

    def unmoved() -> dict[str, jax.Array]:
      values = layer_features(classifier, images, layers)
      return {n: confidence(gaussians[n], values[n]) for n in layers}

    values = jax.lax.cond(state.magnitude > 0, moved, unmoved)
    return state.bias + sum(state.weights[n] * values[n] for n in layers)

  return make_detector(fit, score)


def layer_features(
  classifier: Classifier, images: Images, layers: Sequence[str]
) -> dict[str, jax.Array]:
  """Computes the outputs of layers, averaged over space.

  Args:
    classifier: A classifier with named layers.
    images: float32[B, H, W, C] in [0, 1].
    layers: Their names.

  Returns:
    float32[B, D] a name, D the channels of the layer.
  """
  found = classifier.features(images, layers)
  return {
    name: jnp.mean(found[name], axis=tuple(range(1, found[name].ndim - 1)))
    for name in layers
  }


def fit_gaussians(
  values: np.ndarray, labels: np.ndarray, ridge: float = 1e-6
) -> Gaussians:
  """Estimates the classes of one layer; on the host, in float64.

  Args:
    values: float[N, D], features.
    labels: int[N]; a class without a picture is left out.
    ridge: What the diagonal is raised by where the covariance is singular (to
      float32, in which features come: its smallest eigenvalue at most 1.2e-7
      of its largest), as a share of its mean.

  Returns:
    The means, and the covariance over all classes, divided by N.

  Raises:
    UserError: If no two pictures of a class differ.
    DataError: If a feature is not finite; names the row.
  """
  values = np.asarray(values, np.float64)
  _check_finite(values, 'features of clean pictures')
  _, labels = np.unique(labels, return_inverse=True)
  members = np.eye(labels.max() + 1)[labels]
  means = members.T @ values / members.sum(axis=0)[:, None]
  around = values - means[labels]
  variances, axes = np.linalg.eigh(around.T @ around / len(values))
  if not variances[-1] > 0:
    raise UserError(
      f'the features of {len(values)} clean pictures do not differ within '
      'classes; give more pictures of each class'
    )
  if variances[0] <= np.finfo(np.float32).eps * variances[-1]:
    variances = np.maximum(variances, 0)
    variances += ridge * variances.mean()
  origin, whiten = values.mean(axis=0), axes / np.sqrt(variances)
  return Gaussians(
    *(
      jnp.asarray(array, jnp.float32)
      for array in (origin, whiten, (means - origin) @ whiten)
    )
  )


def confidence(gaussians: Gaussians, values: jax.Array) -> jax.Array:
  """Scores features: float32[B, D] to float32[B], at most 0.

  The largest of -(z - mu)^T P (z - mu) / 2 over the classes.
  """
  white = jnp.matmul(
    values - gaussians.origin, gaussians.whiten, precision='highest'
  )
  square = jnp.sum((white[:, None] - gaussians.means) ** 2, axis=-1)
  return -jnp.min(square, axis=-1) / 2


def directions(
  classifier: Classifier, gaussians: dict[str, Gaussians], images: Images
) -> dict[str, jax.Array]:
  """Signs of the gradients of the confidences: float32[B, H, W, C] a layer.

  They are constants to whoever differentiates.
  """

  def direction(name: str) -> jax.Array:
    def total(images: Images) -> jax.Array:
      values = layer_features(classifier, images, (name,))[name]
      return jnp.sum(confidence(gaussians[name], values))

    return jnp.sign(jax.grad(total)(jax.lax.stop_gradient(images)))

  return {name: direction(name) for name in gaussians}


def moved_confidences(
  classifier: Classifier,
  gaussians: dict[str, Gaussians],
  images: Images,
  towards: dict[str, jax.Array],
  magnitude: float | jax.Array,
) -> dict[str, jax.Array]:
  """Scores pictures, moved for each layer so as to raise its confidence.

  Args:
    classifier: A classifier with named layers.
    gaussians: By name of layer.
    images: float32[B, H, W, C] in [0, 1].
    towards: What `directions` gave.
    magnitude: What pixels move by, in image units; not clipped.

  Returns:
    float32[B] a name.
  """

  def score(name: str) -> jax.Array:
    moved = images + magnitude * towards[name]
    values = layer_features(classifier, moved, (name,))[name]
    return confidence(gaussians[name], values)

  return {name: score(name) for name in gaussians}


def noised_like(key: jax.Array, rows: Batch) -> Batch:
  """Makes randomly noised pictures to tell from attacked ones.

  Args:
    key: One key; a picture's noise depends on its source id and kind only.
    rows: Clean and attacked pictures, NumPy arrays.

  Returns:
    For each attacked picture whose clean version is among the rows: that plus
    Gaussian noise of the L2 norm of the attack, clipped to [0, 1]; with kind 0.
  """
  clean = np.flatnonzero(rows.kind == 0)
  partner_of = dict(zip(rows.source[clean].tolist(), clean, strict=True))
  attacked = np.array(
    [
      row
      for row in np.flatnonzero(rows.kind != 0)
      if rows.source[row] in partner_of
    ],
    int,
  )
  partner = np.array([partner_of[s] for s in rows.source[attacked]], int)
  made = _take(rows, partner)
  if not len(attacked):
    return made
  noise = _noise(
    picture_keys(key, made.source),
    rows.kind[attacked],
    rows.images[attacked] - made.images,
  )
  images: Any = np.clip(made.images + np.asarray(noise), 0, 1)
  return made._replace(images=images)


@jax.jit
def _noise(keys: Keys, kinds: jax.Array, like: jax.Array) -> jax.Array:
  """Gaussian noise of the L2 norm of each row of `like`."""

  def draw(key: jax.Array, kind: jax.Array) -> jax.Array:
    key = jax.random.fold_in(key, kind)
    return jax.random.normal(key, like.shape[1:], jnp.float32)

  return unit_l2(jax.vmap(draw)(keys, kinds)) * per_row(l2(like), like)


def _collect(batches: Iterable[Batch]) -> Batch:
  """Puts all rows that are no padding into one batch of NumPy arrays."""
  parts = [
    _take(jax.tree.map(np.asarray, batch), np.asarray(batch.mask))
    for batch in batches
  ]
  if not parts:
    raise UserError('there are no batches; give at least one')
  return jax.tree.map(lambda *columns: np.concatenate(columns), *parts)


def _take(rows: Batch, which: np.ndarray) -> Batch:
  return jax.tree.map(lambda column: column[which], rows)


def _others(known: Batch, learnt: Sequence[Batch]) -> Batch:
  """Takes the clean pictures that do not occur elsewhere.

  Told by their 8-bit levels: ids of two sets may coincide.
  """
  known = _take(known, np.asarray(known.kind) == 0)
  if not len(known.kind):
    raise UserError(
      'there are no clean pictures to estimate covariances from; give rows '
      'of kind 0'
    )
  digests = lambda images: [hash(level.tobytes()) for level in as_uint8(images)]
  taken = {digest for rows in learnt for digest in digests(rows.images)}
  apart = np.array([digest not in taken for digest in digests(known.images)])
  if not apart.any():
    raise UserError(
      'there are no clean pictures to estimate covariances from: of '
      f'{len(apart)} given all are also among train or valid; give others, of '
      'kind 0'
    )
  if not apart.all():
    warnings.warn(
      f'{np.sum(~apart)} of {len(apart)} clean pictures to estimate '
      'covariances from are also among train or valid and were left out; give '
      'a reference of other pictures',
      DoubtWarning,
      stacklevel=2,
    )
  return _take(known, apart)


def _check_finite(values: np.ndarray, what: str) -> None:
  broken = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
  if broken.any():
    raise DataError(
      f'{broken.sum()} of {len(values)} {what} are not finite, the first in '
      f'row {np.argmax(broken)}; look at the weights of the classifier '
      'and at its layers there'
    )


class _Scored(NamedTuple):
  """Confidences float32[n, M, L], bool[n] attacked, and int32[n] source."""

  values: np.ndarray
  attacked: np.ndarray
  source: np.ndarray


def _weigh_layers(
  train: _Scored, valid: _Scored
) -> tuple[int, np.ndarray, float]:
  """Fits the logistic regression for each magnitude and takes the best.

  Returns:
    The index of the magnitude, the weights float64[L] and the bias.
  """
  attacked = train.attacked
  counts = [len(np.unique(train.source[attacked == side])) for side in (0, 1)]
  if min(counts) < _NUM_FOLDS:
    raise UserError(
      f'clean and noised versions of {counts[0]} and attacked ones of '
      f'{counts[1]} pictures are too few to weigh the layers by; give at least '
      f'{_NUM_FOLDS} of each'
    )
  if valid.attacked.all() or not valid.attacked.any():
    raise UserError(
      f'{valid.attacked.sum()} of {len(valid.attacked)} validation pictures '
      'are attacked; give clean and attacked ones to choose the magnitude by'
    )
  held_out = np.zeros((_NUM_FOLDS + 1, len(attacked)), bool)
  folds = StratifiedGroupKFold(_NUM_FOLDS)
  for fold, (_, rows) in enumerate(
    folds.split(train.values, attacked, train.source)
  ):
    held_out[fold, rows] = True
  # The last one holds nothing out.
  best_auc, best = -1.0, (0, np.zeros(0), 0.0)
  for index in range(train.values.shape[1]):
    values = train.values[:, index]
    weights, bias = fit_logistic(
      values, attacked, ~held_out, _INVERSE_PENALTIES
    )
    scores = weights[:-1] @ values.T + bias[:-1, :, None]
    right = np.mean(
      (scores > 0) == attacked, axis=-1, where=held_out[:-1, None]
    )
    chosen = right.mean(axis=0).argmax()
    weights, bias = weights[-1, chosen], bias[-1, chosen]
    auc = roc.auc(valid.values[:, index] @ weights + bias, valid.attacked)
    if auc > best_auc:
      best_auc, best = auc, (index, weights, float(bias))
  return best
