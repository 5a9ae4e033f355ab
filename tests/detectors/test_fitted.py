"""A fitted detector as a function from images to scores."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, detectors
from jaxadv.classifier import from_function
from jaxadv.detectors import FittedDetector, tws_detector
from jaxadv.errors import DataError, UserError
from jaxadv.norms import linf_ball
from jaxadv.types import Detector, picture_keys
from jaxadv.units import to_uint8
from tests.detectors import cases
from tests.detectors.cases import STRONG

over_all = pytest.mark.parametrize('case', cases.CASES, ids=lambda c: c.name)
IMAGES = cases.pictures(3, 4, STRONG).images
KEYS = picture_keys(jax.random.key(2), np.arange(4))
# Scores how bright a picture is, above what was learnt.
BRIGHTNESS = Detector(
  lambda key, classifier, train, valid: jnp.float32(0.25),
  lambda keys, classifier, state, images: images.mean((1, 2, 3)) - state,
)


@over_all
def test_scores_are_those_of_the_pair(case, fit):
  fitted = FittedDetector(case.detector, case.classifier, fit(case))
  wanted = jax.jit(case.detector.score)(
    KEYS, case.classifier, fit(case), IMAGES
  )
  for images in IMAGES, jnp.asarray(IMAGES), IMAGES.astype(np.float64):
    np.testing.assert_allclose(fitted(images, KEYS), wanted, rtol=1e-5)
  inside = jax.jit(lambda fitted, images: fitted(images, KEYS))
  np.testing.assert_allclose(inside(fitted, IMAGES), wanted, rtol=1e-5)
  assert np.ptp(wanted) > 0


def test_fit_gives_what_the_detector_learns_and_asks_any_function():
  asked = Detector(
    lambda key, classifier, train, valid: (classifier(IMAGES), train, valid),
    lambda keys, classifier, state, images: classifier(images).max(axis=-1),
  )
  function = lambda images: images.mean((1, 2)) * jnp.arange(3.0)
  train, valid = jnp.zeros(2), jnp.ones(2)
  fitted = detectors.fit(jax.random.key(0), asked, function, train, valid)
  chex.assert_trees_all_close(fitted.state, (function(IMAGES), train, valid))
  np.testing.assert_allclose(fitted(IMAGES), function(IMAGES).max(axis=-1))


def test_a_fitted_detector_can_be_compiled_itself():
  classifier = from_function(lambda weights, images: images, jnp.zeros(2))
  fitted = FittedDetector(BRIGHTNESS, classifier, jnp.float32(0.25))
  np.testing.assert_allclose(
    jax.jit(fitted)(IMAGES), IMAGES.mean((1, 2, 3)) - 0.25, rtol=1e-5
  )


def test_new_weights_do_not_retrace():
  score = chex.assert_max_traces(BRIGHTNESS.score, n=1)
  detector = BRIGHTNESS._replace(score=score)
  bright = lambda weights, images: images.mean((1, 2, 3))[:, None] * weights
  for learnt in 0.0, 0.5:
    classifier = from_function(bright, jnp.full(2, learnt))
    fitted = FittedDetector(detector, classifier, jnp.float32(learnt))
    np.testing.assert_allclose(
      fitted(IMAGES), IMAGES.mean((1, 2, 3)) - learnt, atol=1e-6
    )


def test_new_weights_do_not_retrace_what_takes_a_detector():
  inside = jax.jit(
    chex.assert_max_traces(lambda fitted, images: fitted(images), n=1)
  )
  for learnt in 0.0, 0.5:
    inside(FittedDetector(BRIGHTNESS, None, jnp.float32(learnt)), IMAGES)


def test_attacks_evade_it():
  """The classifier errs on dark pictures, the detector flags bright ones."""
  classifier = from_function(
    lambda images: (
      images.mean((1, 2, 3))[:, None] * jnp.array([1.0, 0.0])
      + jnp.array([0.0, 0.45])
    )
  )
  fitted = FittedDetector(BRIGHTNESS, classifier, jnp.float32(0.44))
  attack = attacks.pgd(linf_ball(0.2), num_steps=10)
  labels = jnp.zeros(4, jnp.int32)
  images = jnp.full((4, 8, 8, 3), 0.5)
  found = attacks.evading(attack, fitted)(KEYS, classifier, images, labels)
  assert found.success.all() and (fitted(found.images) <= 0).all()
  assert (fitted(images) > 0).all()


def test_pictures_are_converted_or_refused_and_nan_never_leaves():
  fitted = FittedDetector(BRIGHTNESS, None, jnp.float32(0))
  levels = to_uint8(IMAGES)
  np.testing.assert_allclose(
    fitted(levels), levels.mean((1, 2, 3)) / 255, rtol=1e-5
  )
  with pytest.raises(UserError, match='divide by 255'):
    fitted(levels.astype(np.float32))
  with pytest.raises(UserError, match='N, H, W, C'):
    fitted(IMAGES[0])
  with pytest.raises(DataError, match='4 of 4 scores are NaN'):
    FittedDetector(BRIGHTNESS, None, jnp.float32(np.nan))(IMAGES)


def test_what_is_missing_is_a_sentence():
  with pytest.raises(UserError, match='must be a Detector; call the function'):
    detectors.fit(jax.random.key(0), tws_detector, None, [], [])
  classifier = cases.near_boundary()
  fitted = FittedDetector(tws_detector(0.1), classifier, None)
  with pytest.raises(UserError, match='TWS detector is called with keys'):
    fitted(IMAGES)
