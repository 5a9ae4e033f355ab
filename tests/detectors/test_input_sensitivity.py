"""Gradients with respect to the picture, and detectors on them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import losses
from jaxadv.classifier import from_function, from_linen
from jaxadv.detectors import input_sensitivity as unit
from jaxadv.detectors.baselines import log_sensitivity_detector
from jaxadv.detectors.feature_network import FeatureState
from jaxadv.detectors.saliency import logit_saliency
from jaxadv.errors import UserError
from jaxadv.models.layers import Conv, max_pool, relu, smooth_relu
from jaxadv.norms import l2
from tests.detectors import cases


def closed_form(linear, sharpness):
  """Log odds, maps and log S of a linear classifier, in float64."""
  weights = sharpness * np.asarray(linear.classifier.variables['weights'], 'd')
  bias = sharpness * np.asarray(linear.classifier.variables['bias'], 'd')
  logits = np.asarray(linear.images, 'd').reshape(-1, len(weights)) @ weights
  logits += bias
  rows, label = np.arange(len(logits)), logits.argmax(-1)
  gaps = logits - logits[rows, label][:, None]
  gaps[rows, label] = -np.inf
  odds = np.log(np.exp(gaps - gaps.max(-1, keepdims=True)).sum(-1))
  odds += gaps.max(-1)
  share = np.exp(gaps - odds[:, None])
  directions = share @ weights.T - weights.T[label]
  log_doubt = -np.logaddexp(0, -odds)
  norm = np.linalg.norm(directions, axis=-1)
  maps = np.exp(log_doubt)[:, None] * directions
  return maps.reshape(linear.images.shape), log_doubt + np.log(norm)


def sharper(linear, sharpness):
  return from_function(
    lambda classifier, images: sharpness * classifier(images),
    linear.classifier,
  )


@pytest.mark.parametrize('sharpness', [0.1, 1, 40])
def test_maps_and_norms_equal_the_closed_form(linear, sharpness):
  """At 40 most probabilities round to 1 and squares of maps underflow."""
  maps, log_norm = closed_form(linear, sharpness)
  found = unit.input_sensitivity(sharper(linear, sharpness), linear.images)
  # Logits of a hundred are exact to 1e-5, and so are logarithms.
  near = {'rtol': 1e-3, 'atol': 1e-36}
  np.testing.assert_allclose(found.maps, maps, **near)
  np.testing.assert_allclose(found.norm, np.exp(log_norm), **near)
  if sharpness == 40:
    assert np.exp(log_norm).min() < 1e-19


def test_log_norm_knows_no_limit(linear):
  _, log_norm = closed_form(linear, 1000)
  assert log_norm.min() < -500
  found = unit.log_input_sensitivity(sharper(linear, 1000), linear.images)
  np.testing.assert_allclose(found, log_norm, rtol=1e-4, atol=1e-2)


def test_maps_are_gradients_of_the_cross_entropy(trained):
  classifier, images = trained.classifier, trained.images
  labels = jnp.argmax(classifier(images), axis=-1)
  wanted = jax.jit(
    jax.grad(lambda x: losses.cross_entropy(classifier(x), labels).sum())
  )(images)
  maps, norm = jax.jit(unit.input_sensitivity)(classifier, images)
  np.testing.assert_allclose(maps, wanted, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(
    norm, np.linalg.norm(wanted.reshape(len(images), -1), axis=-1), rtol=1e-3
  )


def test_rows_are_the_same_to_the_bit_in_any_batch():
  """Given logits and directions, which are the classifier's own affair."""
  keys = jax.random.split(jax.random.key(0))
  logits = 5 * jax.random.normal(keys[0], (40, 10))
  maps = jax.random.normal(keys[1], (40, 9, 9, 3))
  run = jax.jit(lambda z, g: (unit.log_odds_against(z), l2(g)))
  together, part = run(logits, maps), run(logits[7:12], maps[7:12])
  for a, b in zip(part, together, strict=True):
    np.testing.assert_array_equal(a, b[7:12])


def test_one_class_is_refused():
  with pytest.raises(UserError, match='at least 2'):
    unit.log_odds_against(jnp.zeros((3, 1)))


def test_saliency_of_a_linear_classifier_is_the_size_of_its_weights(linear):
  weights = np.asarray(linear.classifier.variables['weights'])
  wanted = np.abs(weights.T[np.asarray(linear.labels)])
  found = logit_saliency(linear.classifier, linear.images)
  np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=1e-6)


def test_one_constant_scales_all_maps():
  """Their mean size becomes 1, their ratios stay."""
  maps = jax.random.normal(jax.random.key(0), (8, 4, 4, 3))
  maps = maps * 10.0 ** -jnp.arange(8)[:, None, None, None]
  scale = unit.unit_size(maps)
  assert not scale.shift.any() and np.unique(scale.factor).size == 1
  sizes = np.sqrt(np.mean(np.square(maps * scale.factor), (1, 2, 3)))
  assert sizes.mean() == pytest.approx(1, rel=1e-5)
  np.testing.assert_allclose(
    sizes / sizes[0],
    np.sqrt(np.mean(np.square(maps), (1, 2, 3)) / np.mean(maps[0] ** 2)),
    rtol=1e-4,
  )


def test_log_scaling_shows_small_maps_too():
  features = unit.FEATURES['log']
  maps = jnp.array([-1e-6, 1e-6, 1e-6, 1.0]).reshape(4, 1, 1, 1)
  scale = features.fit_scale(maps)
  np.testing.assert_allclose(scale.factor, 1e6, rtol=1e-5)
  np.testing.assert_allclose(
    features.squash(maps * scale.factor).ravel(),
    [-np.log(2), np.log(2), np.log(2), np.log1p(1e6)],
    rtol=1e-5,
  )


def test_unknown_scaling_names_the_known_ones():
  with pytest.raises(UserError, match='linear, log'):
    unit.input_sensitivity_detector(cases.Small(), scaling='square')


class Victim(nn.Module):
  """The layers of a VGG, few of each."""

  @nn.compact
  def __call__(self, x):
    x = relu(max_pool(Conv(6, (3, 3))(x)))
    x = relu(Conv(6, (3, 3))(x))
    return 5 * nn.Dense(3)(x.reshape(len(x), -1))


@pytest.fixture(scope='module')
def relu_case():
  """A classifier with ReLU, a detector on its maps, two pictures."""
  module = Victim()
  images = jax.random.uniform(jax.random.key(2), (2, 8, 8, 3))
  variables = jax.jit(module.init)(jax.random.key(1), images)
  scale = unit.unit_size(
    unit.input_sensitivity(from_linen(module, variables), images).maps
  )
  network = jax.jit(cases.Small().init)(jax.random.key(3), images)
  state = FeatureState(scale, network)
  return from_linen(module, variables), state, images


def test_second_derivative_of_the_smooth_network(relu_case):
  """Against central differences, in float64."""
  classifier, _, images = relu_case
  with jax.enable_x64(True):
    double = lambda tree: jax.tree.map(
      lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), tree
    )
    variables, images = double(classifier.variables), double(images)
    # Not a Classifier, whose logits are float32.
    classifier = lambda images: Victim().apply(variables, images)
    towards = np.random.default_rng(0).normal(size=images.shape)

    def slope(images):
      with smooth_relu(10.0):
        maps = unit.input_sensitivity(classifier, images).maps
      return jnp.sum(maps * towards)

    slope_at = jax.jit(slope)
    gradient = jax.jit(jax.grad(slope))(images)
    step = 1e-6 * np.random.default_rng(1).normal(size=images.shape)
    change = (slope_at(images + step) - slope_at(images - step)) / 2
    assert change != 0
    np.testing.assert_allclose(jnp.sum(gradient * step), change, rtol=1e-5)


def test_surrogate_has_the_values_of_the_score_and_the_smooth_gradient(
  relu_case,
):
  classifier, state, images = relu_case
  detector = unit.input_sensitivity_detector(cases.Small(), beta=10.0)

  def run(function):
    def total(images):
      values = function(None, classifier, state, images)
      return values.sum(), values

    return jax.jit(jax.grad(total, has_aux=True))

  plain, score = run(detector.score)(images)
  smooth, value = run(detector.surrogate)(images)
  np.testing.assert_allclose(value, score, rtol=1e-6)
  assert np.corrcoef(plain.ravel(), smooth.ravel())[0, 1] < 0.99

  # The chain rule, written out.
  @jax.jit
  def by_hand(images):
    maps = unit.input_sensitivity(classifier, images).maps
    towards = jax.grad(
      lambda g: (
        cases.Small().apply(state.variables, g * state.scale.factor).sum()
      )
    )(maps)
    with smooth_relu(10.0):
      _, pull = jax.vjp(
        lambda x: unit.input_sensitivity(classifier, x).maps, images
      )
    return pull(towards)[0]

  np.testing.assert_allclose(
    smooth, by_hand(images), rtol=1e-3, atol=1e-4 * np.abs(smooth).max()
  )


def test_beta_none_leaves_the_surrogate_out():
  assert log_sensitivity_detector(beta=None).surrogate is None
  detector = unit.input_sensitivity_detector(cases.Small(), beta=None)
  assert detector.surrogate is None
