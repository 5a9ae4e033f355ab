"""Identifiers: what they learn, and how much each class counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.errors import UserError
from jaxadv.identifiers.backbone import (
  attack_score,
  called_attacked,
  class_weights,
  fit_identifiers,
  identify,
)
from jaxadv.metrics.roc import auc
from jaxadv.training import TrainConfig
from jaxadv.training.frozen import prefix_features, task
from tests.detectors import cases
from tests.identifiers.conftest import KINDS, RECIPE, pictures


def logits_of(identifier, images):
  unit, classifier, state = identifier
  keys = jax.random.split(jax.random.key(2), len(images))
  return np.asarray(
    jax.jit(unit.identify)(keys, classifier, state, jnp.asarray(images))
  )


def test_names_the_kinds_of_visible_attacks(identifier):
  batch, classes = pictures(3, 120)
  logits = logits_of(identifier, batch.images)
  assert (logits.argmax(-1) == classes).mean() > 0.95
  assert (called_attacked(logits) == (classes != 0)).mean() > 0.95
  assert auc(attack_score(logits), classes != 0) > 0.99


def test_rows_do_not_depend_on_the_batch(identifier):
  images = pictures(4, 12)[0].images
  together = logits_of(identifier, images)
  assert np.ptp(together, axis=0).min() > 0.1
  backwards = logits_of(identifier, images[::-1])[::-1]
  alone = logits_of(identifier, images[5:6])
  np.testing.assert_allclose(backwards, together, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(alone, together[5:6], rtol=1e-5, atol=1e-5)


def test_pool_of_features_gives_what_pictures_give(identifier):
  """Also: the same key, classes and rows train the same network."""
  unit, classifier, state = identifier
  design = cases.design(cases.network()[0])
  (train, known), (valid, known_too) = pictures(0, 128), pictures(1, 32)
  images = np.concatenate([train.images, valid.images])
  features = jax.jit(lambda c, x: prefix_features(design, c, x))(
    classifier, images
  )
  fitted = fit_identifiers(
    jax.random.key(0)[None],
    design,
    classifier,
    features,
    np.concatenate([known, known_too])[None],
    np.arange(128)[None],
    np.arange(128, 160)[None],
    RECIPE,
    num_classes=3,
  )
  found = identify(design, fitted.state, features, num_classes=3, batch_size=50)
  assert found.shape == (1, 160, 3)
  np.testing.assert_allclose(
    found[0], logits_of(identifier, images), rtol=1e-3, atol=1e-3
  )


def test_clean_and_attacked_have_half_of_the_mass_each():
  classes = np.repeat([0, 1, 2, 3], [30, 10, 40, 40])
  weights = class_weights(classes, 4)
  mass = np.bincount(classes, weights=weights[classes])
  np.testing.assert_allclose(mass, [60, 20, 20, 20], rtol=1e-6)


def test_weights_of_equal_classes_are_the_closed_form():
  # (N + 1) / 2 for clean pictures, (N + 1) / (2 N) for the others.
  np.testing.assert_allclose(
    class_weights(np.arange(300) % 3, 3), [1.5, 0.75, 0.75]
  )
  np.testing.assert_array_equal(class_weights(np.arange(20) % 2, 2), [1, 1])


@pytest.mark.parametrize('classes', [[0, 0, 1], [1, 2, 2], [0, 1, 2, 3]])
def test_classes_without_a_picture_are_refused(classes):
  with pytest.raises(UserError, match='each of the 3'):
    class_weights(np.array(classes), 3)


def test_losses_are_multiplied_by_the_weight_of_their_class(identifier):
  _, classifier, state = identifier
  design = cases.design(cases.network()[0])
  batch, classes = pictures(5, 8)
  data = {
    'features': jax.jit(functools.partial(prefix_features, design))(
      classifier, batch.images
    ),
    'labels': classes[None],
  }
  net = task(design, 3)
  measure = jax.jit(net.measure)
  losses = []
  for weights in ([1.0, 1.0, 1.0], [1.5, 0.5, 0.25]):
    examples = net.gather(
      data | {'weights': jnp.array([weights])}, np.arange(8), 0, None
    )
    losses.append(measure(state.params, state.batch_stats, examples)['loss'])
  np.testing.assert_allclose(
    losses[1], losses[0] * np.array([1.5, 0.5, 0.25])[classes], rtol=1e-6
  )


def test_score_ranks_as_one_minus_the_probability_of_clean():
  logits = np.random.default_rng(0).normal(size=(200, 4)) * 3
  probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_allclose(
    1 / (1 + np.exp(-attack_score(logits))), 1 - probabilities[:, 0]
  )
  # Where that probability rounds to 1, the ranking stays.
  assert np.diff(attack_score(np.array([[-50, 50, 0], [-60, 60, 0.0]]))) > 0


def test_largest_class_decides_even_below_one_half():
  logits = np.log([[0.4, 0.3, 0.3], [0.3, 0.4, 0.3]])
  assert called_attacked(logits).tolist() == [False, True]


def test_pictures_of_another_kind_are_refused(identifier):
  unit, classifier, _ = identifier
  batch, _ = pictures(0, 16)
  odd = batch._replace(kind=np.where(batch.kind == KINDS[0], 7, batch.kind))
  with pytest.raises(UserError, match='7'):
    unit.fit(jax.random.key(0), classifier, [odd], [batch])


def test_recipe_and_head_are_those_of_the_detectors(identifier):
  head = identifier[2].params['head']
  shapes = [head[f'Dense_{i}']['kernel'].shape for i in range(4)]
  assert shapes == [(32, 1024), (1024, 1024), (1024, 512), (512, 3)]
  assert fit_identifiers.__defaults__[0] == TrainConfig()
