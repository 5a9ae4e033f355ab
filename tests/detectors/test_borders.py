"""Pictures in every form that people have, at every detector of the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.errors import DataError, UserError
from jaxadv.types import (
  Batch,
  Detector,
  checked_batches,
  make_detector,
  make_purifier,
  picture_keys,
)
from jaxadv.units import to_float, to_uint8
from tests.detectors import cases
from tests.detectors.cases import STRONG

over_all = pytest.mark.parametrize('case', cases.CASES, ids=lambda c: c.name)
LEVELS = to_uint8(cases.pictures(3, 4, STRONG).images)


@pytest.fixture(scope='module')
def mean():
  """Scores the mean of a picture."""
  return make_detector(
    lambda key, classifier, train, valid: [list(train), list(valid)],
    lambda keys, classifier, state, images: images.mean(axis=(1, 2, 3)),
  )


@over_all
def test_factories_give_detectors_that_check(case):
  """The others of this file see what that means."""
  for function in case.detector:
    if function is not None:
      assert '__wrapped__' in vars(function)


@pytest.mark.parametrize(
  'images, named',
  [
    (LEVELS.astype(np.float32), 'divide by 255'),
    (LEVELS.astype(np.float64) / 100 - 1, 'normalisation'),
    (to_float(LEVELS)[0], r'\(16, 16, 3\)'),
    (to_float(LEVELS).transpose(0, 3, 1, 2), r'transpose\(0, 2, 3, 1\)'),
    (to_float(LEVELS)[:0], 'N > 0'),
  ],
)
def test_what_is_no_picture_is_a_sentence(mean, images, named):
  with pytest.raises(UserError, match=named):
    mean.score(None, None, None, images)
  batch = cases.pictures(0, len(images), STRONG)._replace(images=images)
  with pytest.raises(UserError, match=named):
    mean.fit(None, None, [batch], [])


def test_uint8_and_float64_are_converted_once(mean):
  wanted = to_float(LEVELS)
  batch = cases.pictures(0, 4, STRONG)
  for images in LEVELS, wanted.astype(np.float64), jnp.asarray(wanted):
    (read,), _ = mean.fit(None, None, [batch._replace(images=images)], [])
    assert read.images.dtype == np.float32
    np.testing.assert_array_equal(read.images, wanted)
    np.testing.assert_array_equal(
      mean.score(None, None, None, images),
      mean.score(None, None, None, wanted),
    )


def test_nan_in_a_picture_names_its_batch_and_row(mean):
  batch = cases.pictures(0, 4, STRONG)
  images = batch.images.copy()
  images[2, 5, 5, 1] = np.nan
  broken = [batch, batch._replace(images=images)]
  with pytest.raises(DataError, match='row 2 of images of batch 1 of valid'):
    mean.fit(None, None, [batch], broken)


def test_scores_that_are_nan_do_not_leave():
  detector = make_detector(
    lambda *arguments: (),
    lambda keys, classifier, state, images: jnp.array([0.0, np.nan, np.nan]),
  )
  with pytest.raises(DataError, match='2 of 3 scores are NaN.*row 1'):
    detector.score(None, None, (), to_float(LEVELS)[:3])


@pytest.mark.parametrize('value', [np.nan, -0.01, 1.01])
def test_purified_pictures_outside_of_the_box_do_not_leave(value):
  purifier = make_purifier(
    lambda *arguments: (),
    lambda keys, classifier, state, images: images.at[3, 0, 0, 0].set(value),
  )
  with pytest.raises(DataError, match='purifier.*row 3'):
    purifier.purify(None, None, (), LEVELS)


def test_an_iterator_of_batches_can_be_read_twice():
  batches = cases.batches(cases.pictures(0, 4, STRONG), 2)
  checked = checked_batches(iter(batches), 'train')
  assert len(list(checked)) == len(list(checked)) == 2


def test_a_mask_of_numbers_is_no_list_of_rows():
  batch = cases.pictures(0, 4, STRONG)._replace(mask=np.array([1, 0, 1, 1]))
  (read,) = checked_batches([batch], 'train')
  np.testing.assert_array_equal(read.mask, [True, False, True, True])


def test_columns_of_other_lengths_are_refused():
  batch = cases.pictures(0, 4, STRONG)
  with pytest.raises(UserError, match="'kind': 3"):
    list(checked_batches([batch._replace(kind=batch.kind[:3])], 'train'))


def test_a_pair_of_ones_own_is_left_alone():
  assert Detector(len, max).score is max


def broken_classifier(images):
  """Its logits are NaN for pictures that are bright in one corner."""
  bright = images[:, 0, 0, 0] > 0.9
  logits = jnp.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], axis=-1)
  return jnp.where(bright[:, None], jnp.nan, logits)


# Of the entropy ensemble, the part that asks the classifier.
ASKS_THE_CLASSIFIER = [
  case
  for case in cases.CASES
  if case.name
  in ('tws', 'input_sensitivity', 'saliency', 'log_sensitivity', 'confidence')
]


@pytest.mark.parametrize('case', ASKS_THE_CLASSIFIER, ids=lambda c: c.name)
def test_a_classifier_that_gives_nan_teaches_nothing(case):
  batch = cases.pictures(0, 32, STRONG)
  images = batch.images.copy()
  images[4, 0, 0, 0] = 1
  batch = Batch(*(np.asarray(c) for c in batch._replace(images=images)))
  fit = lambda: case.detector.fit(
    jax.random.key(0), broken_classifier, [batch], [batch]
  )
  if case.name in ('log_sensitivity', 'confidence'):
    state = fit()  # Nothing is fitted.
    with pytest.raises(DataError, match='row 4'):
      case.detector.score(
        picture_keys(jax.random.key(0), batch.source),
        broken_classifier,
        state,
        images,
      )
  else:
    with pytest.raises(DataError, match='NaN|not finite'):
      fit()
