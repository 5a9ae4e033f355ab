"""The network and the pictures of make_golden.py."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.classifier import from_function
from jaxadv.types import picture_keys


@pytest.fixture(scope='session')
def golden():
  """Weights, pictures, and what Foolbox made of them."""
  with np.load(pathlib.Path(__file__).parent / 'golden.npz') as file:
    return dict(file)


@pytest.fixture(scope='session')
def golden_target(golden):
  """Classifier, pictures and labels of the record."""

  def logits(weights, images):
    x = images
    for name in ('first', 'second'):
      x = jax.lax.conv_general_dilated(
        x,
        weights[f'{name}_kernel'],
        (2, 2),
        [(1, 1), (1, 1)],
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )
      x = jax.nn.relu(x + weights[f'{name}_bias'])
    x = x.reshape(len(x), -1) @ weights['logits_kernel']
    return 8 * (x + weights['logits_bias'])

  weights = {
    name: jnp.asarray(value)
    for name, value in golden.items()
    if name.endswith(('_kernel', '_bias'))
  }
  images, labels = jnp.asarray(golden['images']), jnp.asarray(golden['labels'])
  return from_function(logits, weights), images, labels


@pytest.fixture(scope='session')
def run(golden_target):
  """Runs an attack on the record's pictures, or on others in their place.

  A targeted attack is to reach the next class.
  """
  classifier, clean, labels = golden_target

  def run(attack, images=clean, labels=labels):
    keys = picture_keys(jax.random.key(0), jnp.arange(len(labels)))
    wanted = (labels + 1) % 10 if attack.targeted else labels
    return jax.jit(attack)(keys, classifier, images, wanted)

  return run
