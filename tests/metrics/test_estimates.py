"""Figures and their intervals: arithmetic, and coverage on simulated scores."""

import numpy as np
import pytest
from scipy import stats

from jaxadv.metrics.estimates import (
  Estimate,
  combine,
  intervals,
  mean,
  over_trainings,
)
from jaxadv.metrics.intervals import Interval, auc_draws, percentile_interval
from jaxadv.metrics.roc import auc

DRAWS = np.linspace(-1.0, 1.0, 401)


def estimate(value, trainings=(), *, spread=1.0, **more):
  return Estimate(value, value + spread * DRAWS, tuple(trainings), **more)


def test_differences_are_of_draws_trainings_and_printed_numbers():
  a = estimate(3.0, (1.0, 3.0, 5.0), paper=4.0)
  b = estimate(2.0, (2.0, 3.0, 1.0), spread=0.5, paper=1.5)
  difference = a - b
  assert difference.value == 1
  assert difference.trainings == (-1, 0, 4)
  assert difference.paper == 2.5
  np.testing.assert_allclose(difference.draws, 1 + 0.5 * DRAWS)
  # What was not trained is the same in all trainings.
  assert (a - estimate(2.0)).trainings == (-1, 1, 3)
  assert (10 - a).trainings == (9, 7, 5)
  assert (a - 1.0).paper == 3 and (a - estimate(2.0)).paper is None
  assert mean([a, b]).trainings == (1.5, 3, 3)
  ratio = combine(np.divide, a, b)
  assert ratio.value == 1.5 and ratio.trainings == (0.5, 1, 5)


def test_untrained_figures_have_the_percentiles_of_their_draws():
  (found,) = intervals([estimate(5.0)])
  assert found == pytest.approx(percentile_interval(5 + DRAWS))


def test_variances_add_up():
  # Of 4 trainings 1 apart the mean has the variance 5/3 / 4.
  found = estimate(2.5, (1.0, 2.0, 3.0, 4.0), spread=0.0)
  half = stats.t.ppf(0.975, 3) * np.sqrt(5 / 12)
  assert found.interval == pytest.approx((2.5 - half, 2.5 + half))
  # Normal draws of the same variance: half of the total is known exactly.
  sampling = Interval(*(2.5 + stats.norm.ppf([0.025, 0.975]) * np.sqrt(5 / 12)))
  (both,) = intervals([found], [sampling])
  freedom = 3 * 2**2  # Welch and Satterthwaite.
  half = stats.t.ppf(0.975, freedom) * np.sqrt(5 / 6)
  assert both == pytest.approx((2.5 - half, 2.5 + half))


def test_training_variance_is_pooled_over_the_figures_of_a_table():
  quiet = estimate(0.0, (0.0, 0.0, 0.0), spread=0.0)
  loud = estimate(0.0, (-3.0, 0.0, 3.0), spread=0.0)
  untrained = estimate(0.0, spread=0.0)
  one, other, none = intervals([quiet, loud, untrained])
  # Variances 0 and 3 of the mean, 1.5 pooled: two thirds of what counts.
  reach = stats.t.ppf(0.975, 4 / 2**0.5)
  assert one.high == pytest.approx(reach * np.sqrt(1.0))
  assert other.high == pytest.approx(reach * np.sqrt(2.0))
  assert none == (0, 0)


def test_pictures_of_their_own_count_once():
  # Trainings differ by nothing but the pictures that each was tested on.
  rng = np.random.default_rng(0)
  shares = rng.normal(50, 5, 400)
  draws = shares.mean() + rng.normal(0, 5 / np.sqrt(400), 4000)
  apart = Estimate(shares.mean(), draws, tuple(shares), apart=True)
  wide = percentile_interval(draws)
  assert np.diff(apart.interval) == pytest.approx(np.diff(wide), rel=0.1)
  once_more = apart._replace(apart=False)
  assert np.diff(once_more.interval) > 1.3 * np.diff(wide)


def simulated(rng, effects, num_pictures=60):
  """Measures cells of a table: each training has a separation of its own.

  Args:
    rng: Source of chance.
    effects: float[cells, trainings], what training adds to the separation.

  Returns:
    A figure each.
  """
  sources = np.arange(num_pictures)
  cells = []
  for own in effects:
    noise = rng.normal(size=(2, num_pictures))
    each = []
    for shift in 1 + own:
      # One set of test pictures; a network's own view of them is a part.
      clean, attacked = noise + 0.5 * rng.normal(size=noise.shape)
      attacked = attacked + shift
      value = auc(
        np.concatenate([clean, attacked]),
        np.repeat([False, True], num_pictures),
      )
      draws = auc_draws(clean, attacked, sources, sources, num=100)
      each.append(Estimate(100 * float(value), 100 * draws))
    cells.append(over_trainings(each))
  return cells


# Cells alike, and cells of which half hardly notice the training.
@pytest.mark.parametrize('calm', [1.0, 0.1])
def test_intervals_cover_what_another_training_would_give(calm):
  # Strong training noise: its deviation in AUC equals that of sampling.
  rng = np.random.default_rng(0)
  num_cells, num_tables = 16, 15
  spreads = 0.35 * np.where(np.arange(num_cells) % 2, calm, 1.0)
  many = rng.normal(size=4000)
  # Clean and attacked scores have the variance 1 + 0.5**2 each.
  truths = [
    100 * stats.norm.cdf((1 + spread * many) / np.sqrt(2 * 1.25)).mean()
    for spread in spreads
  ]
  hits, alone = [], []
  for _ in range(num_tables):
    cells = simulated(rng, spreads[:, None] * rng.normal(size=(num_cells, 3)))
    for low_and_high, found in (
      (intervals(cells), hits),
      ([percentile_interval(cell.draws) for cell in cells], alone),
    ):
      found += [
        low <= truth <= high
        for (low, high), truth in zip(low_and_high, truths, strict=True)
      ]
  assert 0.92 < np.mean(hits) < 0.99
  assert np.mean(np.reshape(alone, (-1, num_cells))[:, ::2]) < 0.85
