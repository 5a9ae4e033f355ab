"""Numbers that are NaN are refused where they arise, or stay NaN to the end.

What takes the largest of them, sorts them or compares them would hide them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import models
from jaxadv.classifier import from_function, from_linen
from jaxadv.defences.pixel_defend import pixel_defend
from jaxadv.defences.rectifier import guarded, masked_copies, salient_pixels
from jaxadv.detectors import density, input_sensitivity, tws
from jaxadv.detectors.backbone import Design, backbone_detector
from jaxadv.detectors.mahalanobis import fit_gaussians, mahalanobis_detector
from jaxadv.detectors.saliency import logit_saliency
from jaxadv.errors import DataError, UserError
from jaxadv.models.pixelcnn import PixelCNN, init_pixelcnn
from jaxadv.saliency.gradcam import gradcam
from jaxadv.sets.natural import crop_to_saliency
from jaxadv.training import TrainConfig, fit
from jaxadv.training.frozen import pool_logits
from jaxadv.training.state import create_state
from jaxadv.training.tasks import Task, minimise
from jaxadv.types import Batch, picture_keys

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0.1, 0.9, (8, 4, 4, 1)).astype(np.float32)
BROKEN = 5  # The row that a classifier or a network breaks on.
IMAGES[BROKEN, 0, 0, 0] = 1
KEYS = picture_keys(jax.random.key(0), jnp.arange(8))
WEIGHTS = RNG.normal(size=(16, 3)).astype(np.float32)
BATCH = Batch(
  IMAGES,
  np.arange(8, dtype=np.int32) % 3,
  np.zeros(8, np.int32),
  np.arange(8, dtype=np.int32),
  np.ones(8, bool),
)
PIXELCNN = PixelCNN(num_filters=3, num_blocks=0, num_mixtures=2, channels=1)


def broken_at_one(images, value=jnp.nan):
  """Linear logits, of which one is no number where the first pixel is 1."""
  flat = images.reshape(len(images), -1)
  logits = 5 * flat @ WEIGHTS
  bad = jnp.zeros(3).at[1].set(value)
  return jnp.where(flat[:, :1] == 1, bad, logits)


def test_criteria_of_tws_are_nan_where_logits_are():
  measure = jax.jit(
    lambda images: tws.criteria(
      KEYS,
      broken_at_one,
      images,
      sigma=1e-3,
      targeted_lr=0.1,
      untargeted_lr=0.1,
      radius=0.5,
      targeted_cap=3,
      untargeted_cap=3,
    )
  )
  for criterion in measure(IMAGES):
    np.testing.assert_array_equal(np.isnan(criterion), np.arange(8) == BROKEN)


def test_a_score_of_nan_is_not_the_largest():
  level = jnp.linspace(1, 0, 5)
  thresholds = tws.Thresholds(jnp.tile(level[:, None], (1, 3)), level)
  broken = jnp.where(jnp.arange(8) == 2, jnp.nan, 4.0)
  for place in range(3):
    measured = [jnp.zeros(8)] * 3
    measured[place] = broken
    scores = tws.strictness(thresholds, tws.Criteria(*measured))
    np.testing.assert_array_equal(np.isnan(scores), np.arange(8) == 2)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_logits_that_are_not_finite_have_no_saliency(value):
  classifier = lambda images: broken_at_one(images, value)
  if np.isnan(value):
    found = logit_saliency(classifier, IMAGES)
    bad = np.isnan(found).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(bad, np.arange(8) == BROKEN)
  maps, norm = input_sensitivity.input_sensitivity(classifier, IMAGES)
  assert not (np.isfinite(norm) & (norm != 0))[BROKEN]
  assert np.isfinite(np.delete(maps, BROKEN, axis=0)).all()


@pytest.mark.parametrize('scaling', ['linear', 'log'])
def test_gradient_maps_that_are_all_0_have_no_scale(scaling):
  features = input_sensitivity.FEATURES[scaling]
  with pytest.raises(DataError, match='all 8 training pictures are 0'):
    features.fit_scale(jnp.zeros((8, 4, 4, 1)))
  # Most are 0, as where a softmax saturates: the others have one.
  maps = jnp.zeros((8, 4, 4, 1)).at[3].set(2.0)
  wanted = {'linear': 8 / 2, 'log': 1 / 2}[scaling]
  np.testing.assert_allclose(features.fit_scale(maps).factor, wanted)


def test_ranks_of_a_likelihood_that_is_nan_are_nan(monkeypatch):
  bits = jnp.where(jnp.arange(8) == BROKEN, jnp.nan, jnp.arange(8.0))
  for name in 'bits_per_dim', 'measure_bits':
    monkeypatch.setattr(density, name, lambda *arguments: bits)
  state = density.DensityState({}, jnp.arange(5.0))
  score = jax.jit(density.density_detector(PIXELCNN).score)
  found = score(None, None, state, IMAGES)
  np.testing.assert_array_equal(np.isnan(found), np.arange(8) == BROKEN)
  with pytest.raises(DataError, match='likelihoods of training pictures.*5'):
    density.rank_among(PIXELCNN, {}, IMAGES)


@pytest.mark.slow
def test_a_broken_density_purifies_nothing():
  init = jax.jit(lambda key: init_pixelcnn(key, PIXELCNN)['params'])
  broken = jax.tree.map(lambda leaf: leaf * jnp.nan, init(jax.random.key(0)))
  purify = pixel_defend(PIXELCNN, 1).purify
  with pytest.raises(DataError, match='purifier.*weights'):
    purify(None, None, broken, IMAGES[:2])


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_features_that_are_not_finite_have_no_covariance(value):
  values = RNG.normal(size=(20, 3))
  values[7, 1] = value
  with pytest.raises(DataError, match='row 7'):
    fit_gaussians(values, np.arange(20) % 2)


def test_confidences_that_are_not_finite_weigh_no_layer():
  def features(variables, images, names):
    values = images.mean((1, 2, 3))[:, None] * np.ones(3, np.float32)
    values = values + 0.1 * images.reshape(len(images), -1)[:, :3]
    values = jnp.where(images[:, 0, 0] == 1, jnp.nan, values)
    return dict.fromkeys(names, values)

  classifier = from_function(broken_at_one, feature_map=features)
  detector = mahalanobis_detector(
    ('layer',),
    magnitudes=(0.0,),
    reference=[BATCH._replace(images=0.9 * IMAGES)],
  )
  attacked = BATCH._replace(kind=np.ones(8, np.int32))
  with pytest.raises(DataError, match='confidences of pictures'):
    detector.fit(jax.random.key(0), classifier, [BATCH, attacked], [BATCH])


def test_maps_of_a_gradient_that_is_nan_are_nan():
  labels = jnp.ones(8, jnp.int32)
  maps = gradcam(lambda images: images, broken_at_one, IMAGES, labels)
  assert np.isfinite(maps).all()  # Constants have a gradient, 0.
  root = lambda layer: jnp.sqrt(1 - layer[:, 0, 0]) @ WEIGHTS[:1]
  maps = gradcam(lambda images: images, root, IMAGES, labels)
  np.testing.assert_array_equal(
    ~np.isfinite(maps).all(axis=(1, 2)), np.arange(8) == BROKEN
  )


def test_a_picture_that_no_score_judges_is_not_let_through():
  score = lambda images: broken_at_one(images)[:, 1] - 1e3
  plain = from_function(lambda images: images[:, 0, 0] @ WEIGHTS[:1])
  repaired = from_function(
    lambda images, keys: images[:, 0, 0] @ WEIGHTS[:1], stochastic=True
  )
  logits = guarded(plain, repaired, score)(IMAGES, KEYS)
  np.testing.assert_array_equal(
    np.isnan(logits).all(axis=1), np.arange(8) == BROKEN
  )
  with pytest.raises(DataError, match='1 of 8 scores.*row 5'):
    masked_copies(jax.random.key(0), score, IMAGES, 0.5, num_copies=1)


def test_one_entry_of_a_gradient_does_not_hide_the_other_suspects():
  def score(images):
    root = jnp.sqrt(images[:, 0, 0, 0] - images[:, 0, 0, 0])  # Slope NaN.
    return jnp.sum(images * jnp.arange(16.0).reshape(4, 4, 1), (1, 2, 3)) + root

  for mask in 'threshold', 'fraction':
    found = salient_pixels(score, IMAGES, 0.5, mask_rule=mask)
    assert 0 < found.sum() < found.size
    assert not found[:, 0, 0].any() and found[:, 3, 3].all()


def _task(breaks):
  def loss(params, batch_stats, examples, mask, key):
    # Its value is finite, and its gradient not.
    root = jnp.sqrt(params['w'] - params['w']) if breaks else params['w']
    return examples + jnp.sum(root), batch_stats

  return Task(
    init=lambda key, data, member: {'params': {'w': jnp.ones(2)}},
    gather=lambda data, rows, member, key: data[rows],
    update=minimise(loss),
    measure=lambda params, batch_stats, examples: {'loss': examples},
  )


def test_a_last_step_that_breaks_the_weights_is_seen():
  config = TrainConfig(num_epochs=1, batch_size=4, schedule='constant')
  run = lambda breaks: fit(
    jax.random.key(0), _task(breaks), jnp.ones(4), np.arange(4), None, config
  )
  assert np.isfinite(run(False).state.params['w']).all()
  with pytest.raises(DataError, match='weights of member 0 are not finite'):
    run(True)


@pytest.fixture(scope='module')
def small():
  """A VGG of one channel, whose late stages leave nothing of 4x4 pixels."""
  module = models.build('vgg11', num_classes=2, width=0.02, image_size=32)
  variables = models.init_variables(jax.random.key(0), module, 32, 1)
  return module, from_linen(module, variables)


def test_pictures_that_are_too_small_are_no_nan(small):
  module, classifier = small
  detector = backbone_detector(Design(module, 'block1', 'block5', hidden=()))
  with pytest.raises(UserError, match='too small.*stage block'):
    detector.fit(jax.random.key(0), classifier, [BATCH], [BATCH])


def test_logits_of_a_pool_that_are_nan_do_not_leave(small):
  module, classifier = small
  design = Design(module, 'block1', 'block1', hidden=())
  params = {
    'suffix': {},
    'head': {'Dense_0': {'kernel': jnp.ones((1, 1)), 'bias': jnp.zeros(1)}},
  }
  state = create_state({'params': params}, TrainConfig())
  state = jax.tree.map(lambda leaf: leaf[None], state)
  features = jnp.ones((6, 2, 2, 1)).at[4, 1, 1, 0].set(jnp.nan)
  assert pool_logits(design, state, features[:4], batch_size=4).shape == (
    1,
    4,
    1,
  )
  with pytest.raises(DataError, match='1 of 6 logits of pictures.*row 4'):
    pool_logits(design, state, features, batch_size=6)


def test_saliency_maps_that_are_nan_crop_nothing_unseen():
  maps = np.full((8, 4, 4), np.nan, np.float32)
  with pytest.raises(DataError, match='saliency maps'):
    crop_to_saliency((255 * IMAGES).astype(np.uint8), maps)
