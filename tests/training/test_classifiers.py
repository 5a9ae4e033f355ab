"""Training of backbones as classifiers."""

import flax.linen as nn
import jax
import numpy as np

from jaxadv.classifier import Resized, identity
from jaxadv.data.sources import Pictures
from jaxadv.models import init_variables
from jaxadv.models.names import parse_network
from jaxadv.storage import Cache
from jaxadv.training import TrainConfig
from jaxadv.training.classifiers import cached_classifier, fit_classifier


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


seen = []


def fit(key, module, images, labels, recipe, **options):
  seen.append((recipe, options['flip'], len(images), len(labels)))
  return init_variables(key, module, 32)


def other_fit(key, module, images, labels, recipe, **options):
  return init_variables(jax.random.fold_in(key, 1), module, 32)


def train(folder, recipe='one', seed=0, fit=fit):
  images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
  labels, source = np.arange(8, dtype=np.int32) % 2, np.arange(8)
  pictures = Pictures(images, labels, source, ('a', 'b'), 'some', 'abc')
  return cached_classifier(
    jax.random.key(seed),
    Cache(folder),
    parse_network('vgg11:0.02'),
    pictures,
    pictures,
    1,
    image_size=32,
    flip=True,
    identity={},
    recipe=recipe,
    fit=fit,
  )


def test_weights_are_kept_by_recipe(tmp_path):
  seen.clear()
  identities = [train(tmp_path, r).identity for r in ('one', 'one', 'other')]
  assert identities[0] == identities[1] != identities[2]
  assert seen == [('one', True, 8, 8), ('other', True, 8, 8)]


def test_another_key_or_training_does_not_find_the_same_weights(tmp_path):
  first = train(tmp_path)
  for other in train(tmp_path, seed=1), train(tmp_path, fit=other_fit):
    assert other.identity != first.identity
    pairs = zip(
      jax.tree.leaves(other.classifier.variables),
      jax.tree.leaves(first.classifier.variables),
      strict=True,
    )
    assert any((a != b).any() for a, b in pairs)
