"""A small problem: which of three columns is lit, in noisy 8x8 pictures."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.training import (
  TrainConfig,
  classification,
  gather_images,
  linen_apply,
)


class Net(nn.Module):
  """One convolution with BatchNorm and dropout before a dense layer."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(6, (3, 3), use_bias=False)(x)
    x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x)
    x = nn.relu(x).mean(1).reshape(x.shape[0], -1)
    x = nn.Dropout(0.1, deterministic=not train)(x)
    return nn.Dense(3)(x)


def init(key, data, member):
  del data, member
  return Net().init(key, jnp.zeros((1, 8, 8, 1)))


def brighten(key, images):
  change = jax.random.randint(key, (images.shape[0], 1, 1, 1), 0, 9)
  return images + change.astype(images.dtype)


TASK = classification(init, linen_apply(Net()), gather_images(brighten))
CONFIG = TrainConfig(num_epochs=5, batch_size=16, learning_rate=0.02)
TRAIN, VALID = np.arange(90), np.arange(90, 120)


def make_data(seed=0):
  """Labels of the three members: the column, the column shifted, noise."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 3, 120)
  images = rng.integers(0, 100, (120, 8, 8, 1))
  images[np.arange(120), :, 2 * labels + 1] += 100
  return {
    'images': images.astype(np.uint8),
    'labels': np.stack(
      [labels, (labels + 1) % 3, rng.integers(0, 3, 120)]
    ).astype(np.int32),
  }


def assert_close(found, wanted, **tolerance):
  """Compares two trees of arrays, leaf by leaf."""
  found, wanted = jax.tree.leaves(found), jax.tree.leaves(wanted)
  assert len(found) == len(wanted)
  for a, b in zip(found, wanted, strict=True):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerance)
