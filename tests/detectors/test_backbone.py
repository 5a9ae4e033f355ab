"""What is special about the detectors on a frozen prefix."""

import chex
import jax
import numpy as np
import pytest

from jaxadv.detectors.backbone import (
  fit_detectors,
  prefix_features,
  score_detectors,
)
from jaxadv.metrics.roc import auc
from jaxadv.training import TrainConfig, take_member
from tests.detectors import cases

RECIPE = TrainConfig(num_epochs=3, batch_size=16, learning_rate=1e-3)
NUM = 64
TRAIN = np.arange(48)
VALID = np.arange(48, NUM)


@pytest.fixture(scope='module')
def pool():
  """Three tasks on one pool: the grid, its opposite, and coin flips."""
  module, classifier = cases.network()
  design = cases.design(module, hidden=(32, 16))
  batch = cases.pictures(0, NUM, 0.5)
  features = jax.jit(lambda c, x: prefix_features(design, c, x))(
    classifier, batch.images
  )
  attacked = np.stack(
    [
      batch.kind != 0,
      batch.kind == 0,
      np.random.default_rng(0).random(NUM) < 0.5,
    ]
  )
  return design, classifier, features, attacked


@pytest.fixture(scope='module')
def keys():
  return jax.random.split(jax.random.key(3), 3)


def fit_some(keys, pool, members=slice(None), **options):
  design, classifier, features, attacked = pool
  return fit_detectors(
    keys[members],
    design,
    classifier,
    features,
    attacked[members],
    TRAIN,
    VALID,
    options.pop('recipe', RECIPE),
    **options,
  )


@pytest.fixture(scope='module')
def fitted(keys, pool):
  return fit_some(keys, pool, member_mode='map').state


def differ(one, other):
  return bool(np.any(np.asarray(one) != np.asarray(other)))


def test_side_by_side_equals_one_after_the_other(keys, pool):
  # Not Adam, which makes full steps of gradients that are zero but for
  # rounding.
  recipe = TrainConfig(
    num_epochs=2,
    batch_size=16,
    learning_rate=1e-2,
    optimizer='sgd:momentum=0.9',
  )
  design, _, features, _ = pool
  one, other = (
    score_detectors(
      design,
      fit_some(keys, pool, recipe=recipe, member_mode=member_mode).state,
      features,
      member_mode=member_mode,
    )
    for member_mode in ('map', 'vmap')
  )
  assert np.ptp(one, axis=0).min() > 1e-3
  np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)


def test_a_member_equals_the_detector_fitted_alone(keys, pool, fitted):
  alone = fit_some(keys, pool, slice(1, 2), member_mode='map').state
  chex.assert_trees_all_close(
    take_member(alone, 0), take_member(fitted, 1), rtol=0, atol=1e-6
  )


def test_every_member_learns_its_own_labels(pool, fitted):
  design, _, features, attacked = pool
  scores = score_detectors(design, fitted, features)
  assert scores.shape == (3, NUM) and scores.dtype == np.float32
  assert auc(scores[0, VALID], attacked[0, VALID]) > 0.95
  assert auc(scores[1, VALID], attacked[0, VALID]) < 0.05


def test_batch_size_of_scoring_changes_nothing(pool, fitted):
  design, _, features, _ = pool
  np.testing.assert_allclose(
    score_detectors(design, fitted, features, batch_size=10),
    score_detectors(design, fitted, features),
    rtol=1e-5,
    atol=1e-5,
  )


def test_trains_what_follows_the_split_and_nothing_else(pool, fitted):
  _, classifier, _, _ = pool
  before = classifier.variables
  assert set(fitted.params['suffix']) == {'block4', 'block5'}
  assert set(fitted.batch_stats) == {'block4', 'block5'}
  for stage in ('block4', 'block5'):
    start = before['params'][stage]
    end = take_member(fitted, 0).params['suffix'][stage]
    assert jax.tree.all(jax.tree.map(differ, start, end))


def test_features_are_those_of_the_whole_network(pool):
  design, classifier, features, _ = pool
  apply = jax.jit(design.module.apply, static_argnames=('start', 'stop'))
  whole = apply(
    classifier.variables,
    cases.pictures(0, NUM, 0.5).images,
    stop=design.last_stage,
  )
  suffix = apply(
    classifier.variables,
    features,
    start=design.frozen_until,
    stop=design.last_stage,
  )
  np.testing.assert_allclose(suffix, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('case', cases.CASES[:2], ids=lambda c: c.name)
def test_batch_norm_moves_only_if_it_is_to(case, fit):
  before = case.classifier.variables['batch_stats']
  after = fit(case).batch_stats
  assert set(after) == {'block4', 'block5'}
  for stage, found in after.items():
    if case.name == 'backbone':
      assert jax.tree.all(jax.tree.map(differ, found, before[stage]))
    else:
      chex.assert_trees_all_equal(found, before[stage])


def test_head_is_that_of_the_paper(fit):
  head = fit(cases.CASES[0]).params['head']
  shapes = [head[f'Dense_{i}']['kernel'].shape for i in range(4)]
  assert len(head) == 4
  # A sixteenth of the 512 channels of block5 go in.
  assert shapes == [(32, 1024), (1024, 1024), (1024, 512), (512, 1)]


def test_recipe_is_that_of_the_paper():
  recipe = TrainConfig()
  assert (recipe.optimizer, recipe.learning_rate) == ('adam', 1e-4)
  assert (recipe.num_epochs, recipe.batch_size) == (30, 32)
  assert recipe.schedule == (
    'reduce_on_plateau:factor=0.5:patience=3:min_scale=0.01'
  )
