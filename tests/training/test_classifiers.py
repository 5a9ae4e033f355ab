"""Training of backbones as classifiers."""

import flax.linen as nn
import jax
import numpy as np

from jaxadv.classifier import Resized, identity
from jaxadv.training import TrainConfig
from jaxadv.training.classifiers import fit_classifier


class Flat(nn.Module):
  """As many weights as its pictures have pixels."""

  @nn.compact
  def __call__(self, x, train=False):
    return nn.Dense(2, name='out')(x.reshape(len(x), -1))


def test_a_network_may_take_larger_pictures_than_are_stored():
  images = np.zeros((8, 4, 4, 3), np.uint8)
  found = fit_classifier(
    jax.random.key(0),
    Flat(),
    images,
    np.arange(8) % 2,
    TrainConfig(num_epochs=1, batch_size=8, schedule='constant'),
    preprocess=Resized(6, identity),
    flip=False,
  )
  assert found['params']['out']['kernel'].shape == (6 * 6 * 3, 2)
