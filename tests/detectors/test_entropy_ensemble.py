"""The choice between two detectors, and their calibration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, xlogy

from jaxadv.detectors.entropy_ensemble import (
  RULES,
  EnsembleState,
  certain_sum,
  entropy_ensemble,
  more_certain,
  temperature,
)
from jaxadv.errors import DataError, UserError
from jaxadv.types import Batch, Detector

RNG = np.random.default_rng(0)


def entropy(logits):
  # Of the less likely side, so that opposite logits tie exactly.
  p = expit(-np.abs(logits.astype(np.float64)))
  return -xlogy(p, p) - xlogy(1 - p, 1 - p)


def test_picks_the_lower_entropy_and_the_first_of_equals():
  first, second = RNG.normal(0, 3, (2, 500)).astype(np.float32)
  second[:50] = -first[:50]
  wanted = np.where(entropy(second) < entropy(first), second, first)
  np.testing.assert_array_equal(more_certain(first, second), wanted)
  assert (wanted != first).any() and (wanted != second).any()


def test_temperature_undoes_overconfidence():
  logits = RNG.normal(0, 2, 20000)
  attacked = RNG.random(20000) < expit(logits)
  for factor in (0.2, 1, 5):
    found = temperature(factor * logits, attacked)
    assert found == pytest.approx(factor, rel=0.05)


def test_temperature_of_a_detector_that_is_never_wrong_is_no_extreme():
  attacked = np.arange(40) % 2 == 0
  logits = np.where(attacked, 3.0, -3.0)
  # The probabilities become those that Platt gives 20 of 20.
  assert 3 / temperature(logits, attacked) == pytest.approx(
    np.log(21), rel=1e-3
  )


def test_the_sum_has_the_sign_of_the_more_certain_of_two_logits():
  first, second = RNG.normal(0, 3, (2, 2000)).astype(np.float32)
  second[:200] = -first[:200]  # Ties, which the sum cannot tell.
  second[200:400] = np.nextafter(-first[200:400], np.float32(np.inf))
  first[400:420] = second[400:420] = 0
  total = np.asarray(certain_sum(first, second))
  rule = np.asarray(more_certain(first, second))
  np.testing.assert_array_equal(total > 0, rule > 0)
  np.testing.assert_array_equal(total < 0, rule < 0)
  np.testing.assert_array_equal(total[420:], (first + second)[420:])


def _scaled(factor, surrogate=None, zero=0.0):
  """Scores the first pixel; nothing is fitted."""

  def score(keys, classifier, state, images):
    return factor * (images[:, 0, 0, 0] - zero) + state

  return Detector(lambda *arguments: jnp.zeros(()), score, surrogate)


def _batch(n=4000):
  logits = RNG.normal(0, 2, (n, 1, 1, 1)).astype(np.float32)
  attacked = RNG.random(n) < expit(logits.ravel())
  index = np.arange(n, dtype=np.int32)
  mask = index < 0.9 * n
  kind = np.where(mask, 3 * attacked, 3 - 3 * attacked).astype(np.int32)
  return Batch(logits / 20 + 0.5, index, kind, index, mask)


def test_both_are_calibrated_on_the_validation_rows_alone():
  batch = _batch()
  both = _scaled(20 * 8.0, zero=0.5), _scaled(-20 * 0.5, zero=0.5)
  ensemble = entropy_ensemble(*both)
  state = ensemble.fit(jax.random.key(0), None, [], [batch])
  # The second is wrong; no temperature helps it but the largest.
  assert state.temperatures[0] == pytest.approx(8, rel=0.1)
  assert state.temperatures[1] > 900
  plain = entropy_ensemble(*both, calibrate=False)
  unfitted = plain.fit(jax.random.key(0), None, [], [batch])
  np.testing.assert_array_equal(unfitted.temperatures, [1, 1])


@pytest.mark.parametrize(
  ('rule', 'wanted', 'smooth'),
  [
    ('entropy', -4.0, -1.0),
    ('max', 3.0, 3.0),
    ('mean', -0.5, -0.5),
  ],
)
def test_rules(rule, wanted, smooth):
  first, second = _scaled(6.0), _scaled(-2.0)
  ensemble = entropy_ensemble(first, second, rule=rule)
  state = EnsembleState((jnp.zeros(()), jnp.zeros(())), jnp.array([2.0, 0.5]))
  images = jnp.ones((2, 1, 1, 1))
  score = lambda f: float(f(None, None, state, images)[1])
  assert score(ensemble.score) == pytest.approx(wanted)
  assert score(ensemble.surrogate) == pytest.approx(smooth)


def test_surrogate_takes_those_of_its_parts():
  other = lambda keys, classifier, state, images: 10 + images[:, 0, 0, 0]
  ensemble = entropy_ensemble(_scaled(1.0), _scaled(1.0, other))
  state = EnsembleState((jnp.zeros(()), jnp.zeros(())), jnp.ones(2))
  images = jnp.ones((1, 1, 1, 1))
  assert float(ensemble.surrogate(None, None, state, images)[0]) == 12
  assert float(ensemble.score(None, None, state, images)[0]) == 1


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('place', [0, 1])
def test_a_score_that_is_nan_is_not_outvoted(rule, place):
  pair = [jnp.array([2.0]), jnp.array([-3.0])]
  pair[place] = jnp.array([jnp.nan])
  assert np.isnan(RULES[rule](*pair)).all()


def test_logits_that_are_nan_calibrate_nothing():
  attacked = np.arange(40) % 2 == 0
  logits = np.where(np.arange(40) == 7, np.nan, 1.0)
  with pytest.raises(DataError, match='1 of 40 logits'):
    temperature(logits, attacked)


def test_unknown_rule_names_the_known_ones():
  with pytest.raises(UserError, match='entropy, max, mean'):
    entropy_ensemble(_scaled(1.0), _scaled(1.0), rule='vote')
