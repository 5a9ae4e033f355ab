"""ROC figures against counting by hand and scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from jaxadv.errors import DataError, UserError
from jaxadv.metrics import roc


def _scores(n=60, levels=7, seed=0):
  """Scores with many ties, attacked ones a little higher."""
  rng = np.random.default_rng(seed)
  positive = rng.random(n) < 0.4
  return rng.integers(levels, size=n) / levels + 0.2 * positive, positive


def _auc_by_pairs(scores, positive):
  difference = scores[positive][:, None] - scores[~positive][None]
  return np.mean((difference > 0) + 0.5 * (difference == 0))


@pytest.mark.parametrize('levels', [1, 2, 7, 1000])
def test_auc_counts_pairs_and_halves_ties(levels):
  rng = np.random.default_rng(levels)
  scores = rng.integers(levels, size=80).astype(np.float32)
  positive = rng.random(80) < 0.3
  expected = _auc_by_pairs(scores, positive)
  assert roc.auc(scores, positive) == pytest.approx(expected, abs=1e-12)
  assert roc.auc(-scores, positive) == pytest.approx(1 - expected, abs=1e-12)


def test_auc_takes_infinite_scores():
  assert roc.auc([-np.inf, 0, 0, np.inf], [0, 1, 0, 1]) == 0.875


def test_curve_encloses_the_auc():
  scores, positive = _scores()
  curve = roc.roc_curve(scores, positive)
  assert (curve.fpr[0], curve.tpr[0]) == (0, 0)
  assert (curve.fpr[-1], curve.tpr[-1]) == (1, 1)
  area = sklearn_metrics.auc(curve.fpr, curve.tpr)
  assert area == pytest.approx(roc.auc(scores, positive))
  for fpr, tpr, threshold in zip(*curve, strict=True):
    assert fpr == np.mean(scores[~positive] >= threshold)
    assert tpr == np.mean(scores[positive] >= threshold)


@pytest.mark.parametrize('tpr', [0.05, 0.5, 0.95, 1.0])
def test_fpr_at_tpr_tries_every_threshold(tpr):
  scores, positive = _scores(seed=3)
  reached = [
    np.mean(scores[~positive] >= threshold)
    for threshold in np.unique(scores)
    if np.mean(scores[positive] >= threshold) >= tpr
  ]
  assert roc.fpr_at_tpr(scores, positive, tpr) == min(reached)


def test_fpr_at_tpr_reaches_shares_without_binary_form():
  scores = np.concatenate([np.zeros(10), np.arange(20) - 0.5])
  positive = np.arange(30) >= 10
  assert roc.fpr_at_tpr(scores, positive, 0.95) == 0


def test_fpr_at_tpr_sees_points_inside_a_straight_line():
  assert roc.fpr_at_tpr([0, 0, 1, 1, 2, 2], [0, 1] * 3, 0.6) == 2 / 3


@pytest.mark.parametrize('fpr', [0, 0.01, 0.29, 0.5, 1])
def test_threshold_at_fpr_is_the_smallest_that_keeps_it(fpr):
  scores = _scores(seed=5)[0].astype(np.float32)
  threshold = roc.threshold_at_fpr(scores, fpr)
  assert np.mean(scores > threshold) <= fpr
  lower = scores[scores < threshold]
  if lower.size:
    assert np.mean(scores > lower.max()) > fpr


@pytest.mark.parametrize(
  'scores, positive, error, words',
  [
    ([0.1, np.nan], [0, 1], DataError, 'row 1'),
    ([0.1, 0.2], [1, 1], UserError, 'all of these are attacked'),
    ([0.1, 0.2], [0, 0], UserError, 'all of these are clean'),
    ([0.1, 0.2], [0, 1, 1], UserError, 'as many'),
    ([[0.1, 0.2]], [[0, 1]], UserError, 'one score a picture'),
    ([], [], UserError, 'at least one'),
  ],
)
def test_bad_input_is_named(scores, positive, error, words):
  for figure in (roc.auc, roc.roc_curve, roc.fpr_at_tpr):
    with pytest.raises(error, match=words):
      figure(scores, positive)


def test_shares_out_of_range_are_refused():
  with pytest.raises(UserError, match='0, 1'):
    roc.fpr_at_tpr([0, 1], [0, 1], 0)
  with pytest.raises(UserError, match='0, 1'):
    roc.threshold_at_fpr([0, 1], 1.5)


def test_infinite_scores_have_a_curve():
  scores = np.array([-np.inf, 0.0, 1.0, np.inf, np.inf])
  positive = np.array([False, False, True, False, True])
  curve = roc.roc_curve(scores, positive)
  finite = np.array([-9.0, 0.0, 1.0, 9.0, 9.0])
  expected = roc.roc_curve(finite, positive)
  np.testing.assert_array_equal(curve.fpr, expected.fpr)
  np.testing.assert_array_equal(curve.tpr, expected.tpr)
  np.testing.assert_array_equal(curve.threshold[:2], np.inf)
  assert curve.threshold[-1] == -np.inf
  assert roc.fpr_at_tpr(scores, positive, 1.0) == pytest.approx(1 / 3)


def test_scores_in_the_place_of_classes_are_refused():
  with pytest.raises(UserError, match='positive holds other values'):
    roc.auc([1, 1, 0, 0], [0.9, 0.8, 0.0, 0.1])
