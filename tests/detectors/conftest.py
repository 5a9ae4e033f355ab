"""Fitted detectors, shared by the tests."""

import jax
import pytest

from tests.detectors import cases


@pytest.fixture(scope='session')
def fit():
  """Fits a case, once for all tests that ask for the same."""
  done = {}

  def fit(case, strength=cases.STRONG, seed=0, again=0):
    place = (case.name, strength, seed, again)
    if place not in done:
      done[place] = case.detector.fit(
        jax.random.key(seed),
        case.classifier,
        cases.batches(cases.pictures(0, 96, strength), 32),
        cases.batches(cases.pictures(1, 32, strength), 32),
      )
    return done[place]

  return fit
