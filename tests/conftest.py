"""Eight virtual CPU devices, a compilation cache, and things to attack."""

import os

# Read when JAX starts its backend, so set before anything imports it. Tests
# compile for longer than they compute, so less is optimised.
os.environ['XLA_FLAGS'] = (
  '--xla_backend_optimization_level=1 ' + os.environ.get('XLA_FLAGS', '')
)
os.environ['JAX_NUM_CPU_DEVICES'] = '8'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from jaxadv import losses
from jaxadv.classifier import Classifier, from_function, from_linen


def pytest_configure(config):
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    folder = str(config.cache.mkdir('jax'))
    jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


# Files of one worker, by how their paths start: they share what a tiny run has
# left in its cache, which two workers would make twice.
TOGETHER = {
  'tests/experiments/test_gcd_': 'gcd',
  'tests/experiments/test_connection': 'connection',
  'tests/experiments/test_detect': 'connection',
  'tests/experiments/test_paper_variant': 'connection',
  'tests/experiments/test_supervision': 'connection',
  'tests/experiments/test_verify': 'connection',
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  from xdist.scheduler import LoadFileScheduling

  class Scheduler(LoadFileScheduling):
    def _split_scope(self, nodeid):
      for start, group in TOGETHER.items():
        if nodeid.startswith(start):
          return group
      return super()._split_scope(nodeid)

  return Scheduler(config, log)


@pytest.fixture(autouse=True)
def traces():
  """Lets `chex.assert_max_traces` count the traces of each test alone."""
  chex.clear_trace_counter()


# In place of `chex.variants`, whose functions are methods of test classes.
@pytest.fixture(
  params=[lambda function: function, jax.jit], ids=['plain', 'jit']
)
def variant(request):
  """Gives a pure function as it is, and compiled."""
  return request.param


@pytest.fixture
def key():
  return jax.random.key(0)


class Target(NamedTuple):
  """A classifier with pictures, most of which it gets right."""

  classifier: Classifier
  images: jax.Array
  labels: jax.Array


@pytest.fixture(scope='session')
def linear():
  """Three classes, logits linear in the picture, boundaries inside the box.

  Pictures lie around 0.5 and within 0.1 of it, so that no attack of the tests
  meets the box.
  """
  weights = jax.random.normal(jax.random.key(10), (6 * 6 * 3, 3))
  bias = -0.5 * weights.sum(axis=0)

  def logits(variables, images):
    flat = images.reshape(len(images), -1)
    return flat @ variables['weights'] + variables['bias']

  classifier = from_function(logits, {'weights': weights, 'bias': bias})
  noise = jax.random.uniform(jax.random.key(11), (24, 6, 6, 3), minval=-0.1)
  images = 0.5 + jnp.clip(noise, -0.1, 0.1)
  return Target(classifier, images, jnp.argmax(classifier(images), axis=-1))


class SmallNet(nn.Module):
  """Two strided convolutions and a linear layer."""

  num_classes: int = 4

  @nn.compact
  def __call__(self, images):
    x = nn.relu(nn.Conv(8, (3, 3), strides=2, name='first')(images))
    x = nn.relu(nn.Conv(16, (3, 3), strides=2, name='second')(x))
    return nn.Dense(self.num_classes, name='logits')(x.reshape(len(x), -1))


def blobs(key, num):
  """Noisy pictures whose class is the quadrant of a coloured square.

  Returns float32[num, 12, 12, 3] in [0, 1] and int32[num] in 0..3. The square
  is reddish, so that turning the hue matters.
  """
  key_label, key_noise = jax.random.split(key)
  labels = jax.random.randint(key_label, (num,), 0, 4)
  noise = jax.random.uniform(key_noise, (num, 12, 12, 3), maxval=0.6)
  side = jnp.arange(12) // 6
  rows = side[None, :, None] == (labels // 2)[:, None, None]
  columns = side[None, None, :] == (labels % 2)[:, None, None]
  square = (rows & columns)[..., None] * jnp.array([0.08, 0.02, 0.0])
  return jnp.clip(noise + square, 0, 1), labels


@pytest.fixture(scope='session')
def trained():
  """`SmallNet` trained for a moment on `blobs`; 40 fresh pictures."""
  make = jax.jit(blobs, static_argnums=1)
  images, labels = make(jax.random.key(20), 1024)
  net = SmallNet()
  params = jax.jit(net.init)(jax.random.key(21), images[:1])
  optimizer = optax.adam(1e-2)

  @jax.jit
  def step(params, state, images, labels):
    def loss(params):
      return losses.cross_entropy(net.apply(params, images), labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state

  state = jax.jit(optimizer.init)(params)
  for start in range(0, 1024 * 3, 64):
    batch = slice(start % 1024, start % 1024 + 64)
    params, state = step(params, state, images[batch], labels[batch])
  classifier = from_linen(net, params)
  images, labels = make(jax.random.key(22), 40)
  right = jnp.mean(
    jnp.argmax(jax.jit(net.apply)(params, images), axis=-1) == labels
  )
  assert 0.6 < right < 0.9, right
  return Target(classifier, images, labels)
