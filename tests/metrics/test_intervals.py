"""Intervals against SciPy, a plain loop and their stated coverage."""

import numpy as np
import pytest
from scipy import stats

from jaxadv.errors import DataError, UserError
from jaxadv.metrics import intervals, roc


def test_wilson_solves_its_quadratic():
  # The ends are the shares p whose z-score against count/n is 1.96.
  low, high = intervals.wilson(8, 10)
  z = stats.norm.ppf(0.975)
  for end in (low, high):
    assert abs(0.8 - end) == pytest.approx(z * np.sqrt(end * (1 - end) / 10))
  assert intervals.wilson(0, 5).low == 0
  assert intervals.wilson(5, 5).high == 1


def test_mean_interval_equals_scipy():
  values = [0.91, 0.95, 0.87]
  expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
  assert intervals.mean_interval(values, 0.9) == pytest.approx(tuple(expected))


def _weighted_auc(clean, attacked, clean_weights, attacked_weights):
  scores = np.concatenate(
    [np.repeat(clean, clean_weights), np.repeat(attacked, attacked_weights)]
  )
  positive = np.arange(scores.size) >= clean_weights.sum()
  return roc.auc(scores, positive)


def test_draws_equal_a_loop_over_resampled_pictures():
  rng = np.random.default_rng(1)
  clean = rng.integers(6, size=30).astype(np.float32)
  attacked = rng.integers(2, 8, size=20).astype(np.float32)
  clean_sources = np.arange(30) % 25  # some sources hold two clean pictures
  attacked_sources = np.arange(20) + 15  # shared, and attacked only
  draws = intervals.auc_draws(
    clean, attacked, clean_sources, attacked_sources, num=40, seed=2
  )
  ids = np.arange(35)
  stratum = np.isin(ids, clean_sources) + 2 * np.isin(ids, attacked_sources)
  weights = intervals._resample(stratum, 40, np.random.default_rng(2))
  weights = weights.astype(int)
  expected = [
    _weighted_auc(
      clean, attacked, drawn[clean_sources], drawn[attacked_sources]
    )
    for drawn in weights
  ]
  np.testing.assert_allclose(draws, expected, rtol=1e-12)


def test_resamples_keep_the_size_of_every_stratum():
  stratum = np.array([1, 1, 3, 2, 3, 3, 2])
  weights = intervals._resample(stratum, 50, np.random.default_rng(0))
  for value, size in ((1, 2), (2, 2), (3, 3)):
    assert (weights[:, stratum == value].sum(axis=1) == size).all()
  assert np.ptp(weights, axis=0).all()


def test_shared_sources_narrow_the_interval():
  # The attacked score is the clean one plus a constant: drawn together, the
  # two move together.
  clean = np.random.default_rng(3).normal(size=200)
  attacked, ids = clean + 0.5, np.arange(200)
  together = intervals.bootstrap_auc(clean, attacked, ids, ids)
  apart = intervals.bootstrap_auc(clean, attacked, ids, ids + 200)
  assert np.ptp(together) < 0.5 * np.ptp(apart)


def test_interval_covers_the_true_auc():
  rng = np.random.default_rng(4)
  truth = stats.norm.cdf(1 / np.sqrt(2))
  covered = 0
  for seed in range(200):
    low, high = intervals.bootstrap_auc(
      rng.normal(size=60),
      rng.normal(1, size=60),
      np.arange(60),
      np.arange(60, 120),
      num=300,
      seed=seed,
      level=0.9,
    )
    covered += low <= truth <= high
  assert 165 <= covered <= 195  # 180 expected, standard deviation 4.2


def test_same_seed_same_interval():
  clean, attacked = np.arange(10.0), np.arange(10.0) + 3
  ids = np.arange(10)
  first = intervals.bootstrap_auc(clean, attacked, ids, ids, seed=1)
  assert first == intervals.bootstrap_auc(clean, attacked, ids, ids, seed=1)
  assert 0 <= first.low <= first.high <= 1


def test_shares_spread_as_a_binomial_share_does():
  holds = np.arange(400) < 300
  draws = intervals.share_draws([holds], [np.arange(400)], num=4000)[0]
  assert draws.mean() == pytest.approx(0.75, abs=2e-3)
  assert draws.std() == pytest.approx(np.sqrt(0.75 * 0.25 / 400), rel=0.05)


def test_shares_of_groups_with_the_same_sources_are_drawn_together():
  holds, ids = np.arange(100) < 40, np.arange(100)
  same, opposite, other = intervals.share_draws(
    [holds, ~holds, holds[::-1]], [ids, ids, ids[::-1] + 100], num=200
  )
  np.testing.assert_allclose(same + opposite, 1)
  # Other sources, other draws.
  assert abs(np.corrcoef(same, other)[0, 1]) < 0.3
  # Sources of a picture seen twice are drawn once.
  twice = intervals.share_draws(
    [np.repeat(holds, 2)], [np.repeat(ids, 2)], num=4000
  )
  assert twice.std() == pytest.approx(np.sqrt(0.4 * 0.6 / 100), rel=0.05)


def test_bad_input_is_named():
  with pytest.raises(UserError, match='one id a picture'):
    intervals.share_draws([[True, False]], [[0]])
  with pytest.raises(UserError, match='a group'):
    intervals.share_draws([[], [True]], [[], [0]])
  with pytest.raises(UserError, match='num is 0'):
    intervals.share_draws([[True]], [[0]], num=0)
  with pytest.raises(UserError, match='one id a score'):
    intervals.auc_draws([0.0], [1.0], [0, 1], [0])
  with pytest.raises(DataError, match='attacked scores are NaN'):
    intervals.auc_draws([0.0], [np.nan], [0], [0])
  with pytest.raises(UserError, match='num is 0'):
    intervals.auc_draws([0.0], [1.0], [0], [0], num=0)
  with pytest.raises(UserError, match='level is 95'):
    intervals.wilson(1, 2, level=95)
  with pytest.raises(UserError, match='3 successes in 2 trials'):
    intervals.wilson(3, 2)
  with pytest.raises(UserError, match='at least two'):
    intervals.mean_interval([1.0])
