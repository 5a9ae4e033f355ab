"""Mahalanobis confidences against their closed form on Gaussians."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxadv.classifier import from_function
from jaxadv.detectors import mahalanobis as module
from jaxadv.detectors.mahalanobis import (
  Gaussians,
  confidence,
  fit_gaussians,
  mahalanobis_detector,
  noised_like,
)
from jaxadv.errors import DoubtWarning, UserError
from jaxadv.metrics.roc import auc
from jaxadv.types import Batch

SHAPE = (2, 2, 3)


def gaussian(num, seed=0, dimensions=5):
  """Draws of two classes with one covariance, and what they are drawn from."""
  rng = np.random.default_rng(seed)
  mixing = np.random.default_rng(9).normal(size=(dimensions, dimensions))
  means = 3 * np.random.default_rng(8).normal(size=(2, dimensions))
  labels = np.arange(num) % 2
  values = means[labels] + rng.normal(size=(num, dimensions)) @ mixing
  return values.astype(np.float32), labels, means, mixing.T @ mixing


def log_densities(values, means, covariance):
  """Largest over classes, without the factor that all classes share."""
  at_mean = stats.multivariate_normal.logpdf(means[0], means[0], covariance)
  densities = [
    stats.multivariate_normal.logpdf(values, mean, covariance) for mean in means
  ]
  return np.max(densities, axis=0) - at_mean


def test_confidence_is_the_log_density_of_the_best_class():
  values, labels, means, covariance = gaussian(400)
  fitted = fit_gaussians(values, labels)
  estimated = np.stack([values[labels == k].mean(axis=0) for k in (0, 1)])
  around = np.float64(values) - estimated[labels]
  expected = log_densities(values, estimated, around.T @ around / 400)
  found = np.asarray(confidence(fitted, values))
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
  # And near that of the distribution itself.
  exact = log_densities(values, means, covariance)
  assert np.abs(found - exact).mean() < 0.2


def test_confidences_are_distributed_as_in_closed_form():
  """Twice the confidence of a fresh draw is minus a chi-square variable."""
  values, _, means, covariance = gaussian(20000)
  one_class = values[::2]
  fitted = fit_gaussians(one_class, np.zeros(len(one_class), int))
  fresh = np.random.default_rng(5).multivariate_normal(
    means[0], covariance, 4000
  )
  square = -2 * np.asarray(confidence(fitted, np.float32(fresh)))
  assert stats.kstest(square, stats.chi2(5).cdf).statistic < 0.03
  shift = np.ones(5)
  moved = -2 * np.asarray(confidence(fitted, np.float32(fresh + shift)))
  expected = 5 + shift @ np.linalg.solve(covariance, shift)
  assert abs(moved.mean() / expected - 1) < 0.05


@pytest.mark.parametrize('scale', [1.0, 1e-3])
def test_a_singular_covariance_gets_a_ridge(scale):
  values, labels, *_ = gaussian(400)
  values = scale * values
  twice = np.concatenate([values, values[:, :2], 0 * values[:, :1]], axis=1)
  fitted = fit_gaussians(twice, labels)
  found = np.asarray(confidence(fitted, twice))
  # On the pictures themselves the surplus features add nothing.
  plain = np.asarray(confidence(fit_gaussians(values, labels), values))
  np.testing.assert_allclose(found, plain, rtol=0.02, atol=0.05)
  # Off them they cost what the ridge says.
  off = twice + np.float32(scale) * np.eye(8)[7]
  trace = np.trace(np.cov((twice - _centres(twice, labels)).T, bias=True))
  expected = found - scale**2 / (2 * 1e-6 * trace / 8)
  np.testing.assert_allclose(
    confidence(fitted, np.float32(off)), expected, rtol=0.02
  )


def _centres(values, labels):
  means = np.stack([values[labels == k].mean(axis=0) for k in (0, 1)])
  return means[labels]


def test_classes_without_pictures_attract_nothing():
  values, labels, *_ = gaussian(100)
  apart = fit_gaussians(values, 3 + 4 * labels)
  chex.assert_trees_all_equal(apart, fit_gaussians(values, labels))
  with pytest.raises(UserError, match='do not differ'):
    fit_gaussians(values[:2], np.arange(2))


def feature_map(variables, images, names):
  """Two layers: averages over space, and the picture through a matrix."""
  flat = images.reshape(len(images), -1)
  layers = {'mean': images, 'flat': flat @ variables}
  return {name: layers[name] for name in names}


CLASSIFIER = from_function(
  lambda variables, images: images.reshape(len(images), -1) @ variables,
  jax.random.normal(jax.random.key(3), (12, 4)),
  feature_map=feature_map,
)


def rows(num, seed=0, shift=0.2, first=0):
  """Clean pictures of two classes, each followed by an attacked version."""
  rng = np.random.default_rng(seed)
  labels = np.arange(num) % 2
  clean = 0.4 + 0.2 * labels[:, None, None, None]
  clean = clean + 0.05 * rng.normal(size=(num, *SHAPE))
  attacked = clean + shift * np.array([1.0, -1.0, 0.0])
  return Batch(
    images=np.concatenate([clean, attacked]).astype(np.float32),
    labels=np.tile(labels, 2).astype(np.int32),
    kind=np.repeat([0, 2], num).astype(np.int32),
    source=np.tile(np.arange(first, first + num), 2).astype(np.int32),
    mask=np.ones(2 * num, bool),
  )


def test_features_are_averaged_over_space():
  images = rows(3).images
  found = module.layer_features(CLASSIFIER, images, ('flat', 'mean'))
  np.testing.assert_allclose(found['mean'], images.mean(axis=(1, 2)), rtol=1e-6)
  assert found['flat'].shape == (6, 4)


def test_pictures_move_along_the_gradient_of_their_best_class():
  """Linear features: gradient and moved confidence in closed form."""
  rng = np.random.default_rng(1)
  whiten = rng.normal(size=(4, 4)).astype(np.float32)
  means = rng.normal(size=(3, 4)).astype(np.float32)
  gaussians = {'flat': Gaussians(jnp.zeros(4), whiten, means)}
  images = rows(10).images
  matrix = np.asarray(CLASSIFIER.variables) @ whiten

  def closed_form(flat):
    apart = flat @ matrix - means[:, None]
    best = (apart**2).sum(axis=-1).argmin(axis=0)
    return apart[best, np.arange(len(flat))]

  flat = images.reshape(20, -1)
  gradient = -closed_form(flat) @ matrix.T
  towards = module.directions(CLASSIFIER, gaussians, images)
  np.testing.assert_array_equal(
    towards['flat'].reshape(20, -1), np.sign(gradient)
  )
  found = module.moved_confidences(CLASSIFIER, gaussians, images, towards, 0.01)
  moved = closed_form(flat + 0.01 * np.sign(gradient))
  np.testing.assert_allclose(
    found['flat'], -(moved**2).sum(axis=-1) / 2, rtol=1e-3
  )
  assert (
    found['flat'] > confidence(gaussians['flat'], flat @ CLASSIFIER.variables)
  ).all()


def test_noise_has_the_norm_of_the_attack_on_the_same_picture(key):
  some = rows(6)
  size = np.arange(1, 7) / 100
  images = some.images.copy()
  images[6:] = images[:6] + size[:, None, None, None] / np.sqrt(12)
  # One attacked picture has no clean version, and the order is another.
  keep = np.array([11, 3, 0, 7, 2, 6, 8, 1, 5])
  some = Batch(*(c[keep] for c in some._replace(images=images)))
  found = noised_like(key, some)
  np.testing.assert_array_equal(found.source, [5, 1, 0, 2])
  assert not found.kind.any() and found.mask.all()
  delta = found.images - images[[5, 1, 0, 2]]
  np.testing.assert_allclose(
    np.linalg.norm(delta.reshape(4, -1), axis=1), size[[5, 1, 0, 2]], rtol=1e-4
  )
  assert (np.abs(delta).std(axis=(1, 2, 3)) > 1e-4).all()
  again = noised_like(key, Batch(*(c[::-1] for c in some)))
  np.testing.assert_array_equal(again.images[::-1], found.images)
  nothing = noised_like(key, Batch(*(c[:1] for c in some)))
  assert nothing.images.shape == (0, *SHAPE)


def scored(num, informative, seed=0):
  """Confidences of 3 magnitudes and 2 layers; one of each tells attacks."""
  rng = np.random.default_rng(seed)
  attacked = np.arange(num) % 3 == 0
  values = rng.normal(-50, 10, (num, 3, 2)).astype(np.float32)
  values[:, informative, 1] -= 40 * attacked[:, None]
  return module._Scored(values, attacked, np.arange(num))


@pytest.mark.parametrize('informative, wanted', [([1], 1), ([0, 2], 0)])
def test_the_magnitude_and_the_layer_that_tell_attacks_are_found(
  informative, wanted
):
  train, valid = scored(90, informative), scored(60, informative, seed=1)
  if wanted == 0:  # Of two that are equal the smaller.
    train.values[:, 2], valid.values[:, 2] = (
      train.values[:, 0],
      valid.values[:, 0],
    )
  index, weights, bias = module._weigh_layers(train, valid)
  assert index == wanted
  assert weights[1] < -3 * abs(weights[0])
  scores = valid.values[:, index] @ weights + bias
  assert auc(scores, valid.attacked) > 0.95
  # Their sign is the decision.
  assert ((scores > 0) == valid.attacked).mean() > 0.9


@pytest.fixture(scope='module')
def fitted():
  reference = [rows(100, seed=7, first=1000)]
  detector = mahalanobis_detector(
    ('flat', 'mean'), magnitudes=(0.005,), reference=reference, batch_size=32
  )
  state = detector.fit(
    jax.random.key(0),
    CLASSIFIER,
    [rows(40)],
    [rows(20, seed=1, first=100)],
  )
  return detector, state, reference[0]


def test_score_weighs_the_moved_confidences(fitted):
  detector, state, reference = fitted
  test = rows(30, seed=2)
  score = jax.jit(detector.score)
  scores = score(None, CLASSIFIER, state, test.images)
  assert auc(scores, test.kind != 0) > 0.95

  @jax.jit
  def moved(gaussians, images, magnitude):
    towards = module.directions(CLASSIFIER, gaussians, images)
    return module.moved_confidences(
      CLASSIFIER, gaussians, images, towards, magnitude
    )

  for magnitude in (0.0, 0.005):
    state = state._replace(magnitude=jnp.float32(magnitude))
    found = score(None, CLASSIFIER, state, test.images)
    values = moved(state.gaussians, test.images, magnitude)
    wanted = state.bias + sum(state.weights[n] * values[n] for n in values)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    if not magnitude:
      assert np.abs(found - scores).max() > 1e-3


def test_clean_pictures_that_weigh_the_layers_give_no_covariance(fitted):
  detector, state, reference = fitted
  train, valid = rows(40), rows(20, seed=1, first=100)

  def fit(*batches):
    detector = mahalanobis_detector(
      ('flat', 'mean'),
      magnitudes=(0.005,),
      reference=batches,
      batch_size=32,
    )
    return detector.fit(jax.random.key(0), CLASSIFIER, [train], [valid])

  # Under other ids, and as 8 bit.
  levels = np.uint8(np.round(255 * valid.images))
  again = (
    train._replace(source=train.source + 5000),
    valid._replace(images=levels),
  )
  with pytest.warns(DoubtWarning, match='60 of 160 clean'):
    found = fit(reference, *again)
  chex.assert_trees_all_equal(found, state)
  with pytest.raises(UserError, match='of 60 given all'):
    fit(*again)


def test_covariances_come_from_the_clean_reference(fitted):
  _, state, reference = fitted
  clean = reference.kind == 0
  features = module.layer_features(
    CLASSIFIER, reference.images[clean], ('flat', 'mean')
  )
  for name, values in features.items():
    wanted = fit_gaussians(values, reference.labels[clean])
    np.testing.assert_allclose(
      confidence(state.gaussians[name], values),
      confidence(wanted, values),
      rtol=1e-3,
    )


def test_the_gradient_of_the_score_is_first_order(fitted):
  detector, state, _ = fitted
  images = jnp.asarray(rows(4).images)
  total = lambda x: detector.score(None, CLASSIFIER, state, x).sum()
  gradient = jax.grad(total)(images)
  towards = module.directions(CLASSIFIER, state.gaussians, images)

  def with_constant_direction(x):
    values = module.moved_confidences(
      CLASSIFIER, state.gaussians, x, towards, state.magnitude
    )
    return sum((state.weights[n] * values[n]).sum() for n in values)

  np.testing.assert_allclose(
    gradient, jax.grad(with_constant_direction)(images), rtol=1e-4, atol=1e-5
  )


def test_without_a_reference_other_sources_give_the_covariances(monkeypatch):
  seen = {}
  monkeypatch.setattr(
    module,
    'fit_gaussians',
    lambda values, labels, ridge: (
      seen.setdefault('values', values),
      fit_gaussians(values, labels, ridge),
    )[1],
  )
  weigh = module._weigh_layers
  monkeypatch.setattr(
    module,
    '_weigh_layers',
    lambda train, valid: (
      seen.update(source=train.source) or weigh(train, valid)
    ),
  )
  train = rows(40)
  mahalanobis_detector(('mean',), magnitudes=(0.0,), batch_size=32).fit(
    jax.random.key(0), CLASSIFIER, [train], [rows(20, seed=1, first=100)]
  )
  rest = set(seen['source'].tolist())
  assert len(rest) == 20 and len(seen['source']) == 3 * 20
  known = np.sort(seen['values'], axis=0)
  others = (train.kind == 0) & ~np.isin(train.source, list(rest))
  wanted = np.sort(train.images[others].mean(axis=(1, 2)), axis=0)
  np.testing.assert_allclose(known, wanted, rtol=1e-5)


@pytest.mark.parametrize(
  'train, valid, named',
  [
    ([], None, 'no batches'),
    ([rows(3)], None, 'too few to weigh'),
    (None, [rows(3)._replace(kind=np.zeros(6, int))], '0 of 6 validation'),
  ],
)
def test_too_few_pictures_are_refused(train, valid, named):
  detector = mahalanobis_detector(
    ('mean',), magnitudes=(0.0,), reference=[rows(40, seed=7)], batch_size=32
  )
  some = [rows(20)]
  with pytest.raises(UserError, match=named):
    detector.fit(
      jax.random.key(0),
      CLASSIFIER,
      some if train is None else train,
      some if valid is None else valid,
    )


@pytest.mark.parametrize(
  'options, named',
  [
    ({'layers': ()}, 'layers are empty'),
    ({'magnitudes': (2.0,)}, 'magnitudes is'),
    ({'magnitudes': ()}, 'magnitudes are empty'),
    ({'ridge': 0.0}, 'ridge is 0'),
  ],
)
def test_misuse_is_explained(options, named):
  with pytest.raises(UserError, match=named):
    mahalanobis_detector(**{'layers': ('mean',)} | options)
