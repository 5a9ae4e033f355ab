"""Training of a density: bits, the averaged weights, several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.errors import UserError
from jaxadv.models.pixelcnn import PixelCNN
from jaxadv.training import TrainConfig, data_mesh
from jaxadv.training import pixelcnn as unit
from jaxadv.training.pixelcnn import (
  RECIPE,
  clean_pictures,
  decay,
  fit_pixelcnn,
  measure_bits,
  pixelcnn_task,
)
from jaxadv.training.state import create_state, learning_rate
from jaxadv.types import Batch
from tests.training.nets import assert_close

MODULE = PixelCNN(
  num_filters=3, num_blocks=0, num_mixtures=2, channels=1, dropout=0.1
)
CONFIG = TrainConfig(
  num_epochs=6, batch_size=16, learning_rate=0.02, schedule=decay
)


def stripes(num):
  """Dark and bright rows in turn, nearly without noise."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 4, (num, 8, 8, 1))
  images[:, ::2] += 180
  return images.astype(np.uint8)


@pytest.fixture(scope='module')
def fitted():
  images = stripes(72)
  return fit_pixelcnn(
    jax.random.key(0), MODULE, images[:64], images[64:], CONFIG
  )


def test_fewer_bits_than_at_the_start_also_on_other_pictures(fitted):
  bits = fitted.history['valid_loss']
  # Uniform levels would cost 8 bits.
  assert bits[-1] < 6 < bits[0] - 1
  images = stripes(72)[64:]
  measured = measure_bits(MODULE, fitted.params, images, batch_size=3)
  assert measured.mean() == pytest.approx(bits[-1], rel=1e-5)


@pytest.mark.slow
def test_batches_split_over_devices_give_the_same_weights(fitted):
  images = stripes(72)
  found = fit_pixelcnn(
    jax.random.key(0),
    MODULE,
    images[:64],
    images[64:],
    CONFIG,
    mesh=data_mesh(jax.devices()[:2]),
  )
  np.testing.assert_allclose(
    found.history['valid_loss'], fitted.history['valid_loss'], rtol=1e-2
  )


def test_average_forgets_the_start_and_then_moves_by_the_papers_share():
  task = pixelcnn_task(MODULE)
  start = jax.jit(lambda key: task.init(key, None, 0))(jax.random.key(1))
  params = jax.tree.map(lambda leaf: leaf + 1.0, start['params'])
  images = jnp.zeros((1, 4, 4, 1))
  keep = lambda state, gradients, player: state
  update = jax.jit(functools.partial(task.update, apply_gradients=keep))
  for count, share in ((0, 0.9), (10, 9 / 20), (1e6, 0.0005)):
    stats = start['batch_stats'] | {'count': jnp.float32(count)}
    variables = {'params': params, 'batch_stats': stats}
    state = create_state(variables, CONFIG)
    state, _ = update(state, images, jnp.array([True]), jax.random.key(2))
    after = state.batch_stats
    assert after['count'] == count + 1
    wanted = jax.tree.map(
      lambda leaf, share=share: leaf + share, start['params']
    )
    assert_close(after['average'], wanted, rtol=1e-5, atol=1e-6)


def test_recipe_is_that_of_the_paper():
  assert (RECIPE.optimizer, RECIPE.learning_rate) == (
    'adam:b1=0.95:b2=0.9995',
    1e-3,
  )
  state = create_state({'params': {'w': jnp.ones(2)}}, RECIPE)
  later = state._replace(step=jnp.int32(100_000))
  assert learning_rate(state, RECIPE, 1) == pytest.approx(1e-3)
  assert learning_rate(later, RECIPE, 1) == pytest.approx(
    1e-3 * 0.999995**100_000, rel=1e-3
  )
  module = PixelCNN()
  assert (module.num_filters, module.num_blocks) == (160, 5)
  assert (module.num_mixtures, module.dropout) == (10, 0.5)


def test_only_clean_rows_are_learned_from():
  images = np.arange(4, dtype=np.float32)[:, None, None, None] / 255
  batch = Batch(
    images=images,
    labels=np.zeros(4, np.int32),
    kind=np.array([0, 2, 0, 0], np.int32),
    source=np.arange(4, dtype=np.int32),
    mask=np.array([True, True, False, True]),
  )
  found = clean_pictures([batch, batch])
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found.ravel(), [0, 3, 0, 3])
  levels = batch._replace(
    images=np.arange(4, dtype=np.uint8)[:, None, None, None]
  )
  np.testing.assert_array_equal(clean_pictures([levels, batch]), found)
  with pytest.raises(UserError, match='kind 0'):
    clean_pictures([batch._replace(kind=batch.kind + 1)])


def test_pictures_in_floats_are_not_divided_by_255_again(monkeypatch):
  """They used to be, and a density of black pictures came out."""
  seen = []
  monkeypatch.setattr(
    unit, 'fit', lambda key, task, data, *others, **options: seen.append(data)
  )
  levels = np.arange(64, dtype=np.uint8).reshape(4, 4, 4, 1)
  for images in levels, levels.astype(np.float32) / 255:
    with pytest.raises(AttributeError):  # Nothing is fitted.
      fit_pixelcnn(jax.random.key(0), MODULE, images, images)
  for data in seen:
    np.testing.assert_array_equal(data['images'][:4], levels)
    np.testing.assert_array_equal(data['images'][4:], levels)
  with pytest.raises(UserError, match='divide by 255'):
    fit_pixelcnn(jax.random.key(0), MODULE, levels.astype(np.float32))
