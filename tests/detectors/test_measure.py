"""Measuring a detector: what it may see, and what comes out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.data.sources import pictures_from_arrays
from jaxadv.detectors import network
from jaxadv.detectors.measure import measure
from jaxadv.detectors.network import network_detector
from jaxadv.errors import UserError
from jaxadv.training import TrainConfig
from jaxadv.types import Batch, Detector


def _pictures(num=50, size=16):
  """Flat grey pictures; attacked ones are 40 grey levels brighter."""
  grey = np.random.default_rng(0).integers(0, 200, num)
  images = np.repeat(grey.astype(np.uint8), size * size * 3)
  clean = pictures_from_arrays(
    images.reshape(num, size, size, 3),
    np.zeros(num, np.int32),
    class_names=('0',),
    name='flat',
  )
  return clean, clean._replace(images=clean.images + np.uint8(40))


def _brightness(seen):
  def fit(key, classifier, train, valid):
    del key, classifier
    for name, part in (('train', train), ('valid', valid)):
      seen[name] = {int(i) for b in part for i in b.source[b.mask]}
    return ()

  score = lambda keys, classifier, state, images: images.mean((1, 2, 3))
  return Detector(fit, score)


@pytest.mark.parametrize('batch_size', [7, 128])
def test_measure_scores_each_test_picture_once_and_ranks_them(key, batch_size):
  clean, attacked = _pictures()
  found = measure(
    key, _brightness({}), None, clean, attacked, batch_size=batch_size
  )
  brightness = (
    np.where(found.attacked, 40, 0) + clean.images[found.source, 0, 0, 0]
  )
  np.testing.assert_allclose(found.scores, brightness / 255, rtol=1e-5)
  assert found.attacked.sum() == (~found.attacked).sum() == 25
  pairs = np.sign(
    brightness[found.attacked][:, None] - brightness[~found.attacked]
  )
  assert found.auc == pytest.approx(float((pairs + 1).mean() / 2))


def test_no_source_is_on_two_sides(key):
  seen = {}
  found = measure(key, _brightness(seen), None, *_pictures())
  tested = set(found.source.tolist())
  assert len(tested) == 25 and len(seen['train'] | seen['valid']) == 25
  assert not tested & (seen['train'] | seen['valid'])
  assert not seen['train'] & seen['valid']


def test_network_detector_learns_noise_and_can_be_differentiated(key):
  clean, _ = _pictures(80)
  noise = jax.random.bernoulli(key, shape=clean.images.shape)
  noisy = clean._replace(images=clean.images + 30 * np.asarray(noise, np.uint8))
  detector = network_detector(
    image_size=16, config=TrainConfig(num_epochs=8, learning_rate=1e-2)
  )
  found = measure(key, detector, None, clean, noisy)
  assert found.auc > 0.95
  gradient = jax.jit(jax.grad(lambda x: found.fitted(x).sum()))(
    jnp.asarray(clean.images[:2] / 255, jnp.float32)
  )
  assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0


def test_network_detector_takes_grey_pictures_of_its_size(monkeypatch):
  """They used to end in an error of Flax."""
  stub = Detector(
    lambda key, network, train, valid: network.variables,
    lambda keys, network, state, images: images.mean(axis=(1, 2, 3)),
  )
  monkeypatch.setattr(network, 'backbone_detector', lambda *arguments: stub)
  grey = _pictures(8)[0].images[..., :1]
  index = np.arange(8, dtype=np.int32)
  batch = Batch(grey, index, index % 2, index, np.ones(8, bool))
  detector = network_detector(width=0.02, image_size=16)
  state = detector.fit(jax.random.key(0), None, [batch], [batch])
  first = state.trained['params']['block1']['block1_conv1']['kernel']
  assert first.shape[2] == 1
  assert detector.score(None, None, state, grey).shape == (8,)
  for images in grey[:, :8], grey[:, :8, :8]:
    odd = [batch._replace(images=images)]
    with pytest.raises(UserError, match=r'8x\d+ pixels, .* for 16x16'):
      detector.score(None, None, state, images)
    with pytest.raises(UserError, match=r'8x\d+ pixels, .* for 16x16'):
      detector.fit(jax.random.key(0), None, odd, [batch])
