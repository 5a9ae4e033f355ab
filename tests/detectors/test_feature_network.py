"""What all networks on features share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.detectors import feature_network
from jaxadv.detectors.pixels import PIXELS, pixel_detector, standardising
from jaxadv.errors import UserError
from jaxadv.metrics.roc import auc
from tests.detectors import cases


@pytest.mark.parametrize('num_values', [3, 1000])
def test_auc_inside_jit_equals_that_of_the_metrics(num_values):
  rng = np.random.default_rng(num_values)
  scores = rng.integers(0, num_values, 200).astype(np.float32)
  positive = rng.random(200) < expected_share(scores)
  found = jax.jit(feature_network._auc)(scores, positive)
  assert float(found) == pytest.approx(auc(scores, positive), abs=1e-6)


def expected_share(scores):
  return 0.1 + 0.5 * scores / scores.max()


def test_standardised_channels_have_mean_0_and_spread_1():
  images = jax.random.uniform(jax.random.key(0), (50, 6, 6, 3))
  images = images.at[..., 2].set(0.25)
  inputs = feature_network._inputs(PIXELS, standardising(images), images)
  np.testing.assert_allclose(inputs.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(inputs.std((0, 1, 2)), [1, 1, 0], atol=1e-4)


@pytest.mark.parametrize('side', ['training', 'validation'])
def test_rows_of_one_kind_only_are_refused(side):
  both = cases.pictures(0, 8, cases.STRONG)
  clean = both._replace(kind=0 * both.kind)
  sides = ([clean], [both]) if side == 'training' else ([both], [clean])
  with pytest.raises(UserError, match=f'8 {side} rows are all clean'):
    pixel_detector(cases.Small()).fit(jax.random.key(0), None, *sides)


def test_grey_pictures_are_taken_too():
  grey = lambda seed: [
    (b := cases.pictures(seed, 32, cases.STRONG))._replace(
      images=b.images[..., :1]
    )
  ]
  detector = pixel_detector(cases.Small(), cases.FAST)
  state = detector.fit(jax.random.key(0), None, grey(0), grey(1))
  test = grey(2)[0]
  scores = detector.score(None, None, state, jnp.asarray(test.images))
  assert auc(scores, test.kind != 0) > 0.95
