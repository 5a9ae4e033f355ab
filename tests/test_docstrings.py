"""The examples in docstrings run and print what they say."""

import doctest
import functools
import importlib
import pkgutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxadv
from jaxadv import attacks, defences, detectors, norms, types
from jaxadv.classifier import from_function, from_linen
from jaxadv.models.chain import Chain, PoolHead
from tests.detectors import cases


def _examples():
  """Gives the docstrings of jaxadv that hold examples, by their names."""
  found = {}
  finder = doctest.DocTestFinder(exclude_empty=True)
  for info in pkgutil.walk_packages(jaxadv.__path__, 'jaxadv.'):
    # Builders register with TFDS when they are imported.
    if '.builders.' not in info.name:
      module = importlib.import_module(info.name)
      found |= {t.name: t for t in finder.find(module) if t.examples}
  return found


EXAMPLES = _examples()


class _Block(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    del train
    return nn.relu(nn.Dense(4)(x))


class _Network(Chain):
  """A backbone that compiles in no time, of one logit as detectors have."""

  @nn.nowrap
  def stages(self):
    blocks = {f'block{number}': _Block for number in range(1, 6)}
    return blocks | {'head': functools.partial(PoolHead, 1)}


@pytest.fixture(scope='module')
def on_networks():
  """What the examples of detectors take as given."""
  module = _Network()
  variables = module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  train, valid = (cases.pictures(seed, 32, cases.STRONG) for seed in (0, 1))
  return {
    'classifier': from_linen(module, variables),
    'images': valid.images,
    'keys': types.picture_keys(jax.random.key(1), valid.source),
    'module': module,
    'train': [train],
    'valid': [valid],
  }


@pytest.fixture(scope='module')
def on_linear():
  """What all other examples take as given: a linear classifier of 3 classes."""
  weights = jax.random.normal(jax.random.key(2), (6 * 6 * 3, 3))

  def my_logits(images):
    return (images - 0.5).reshape(len(images), -1) @ weights

  images = jax.random.uniform(jax.random.key(3), (24, 6, 6, 3))
  return {
    'classifier': from_function(my_logits),
    'images': images,
    'keys': types.picture_keys(jax.random.key(1), jnp.arange(24)),
    'labels': my_logits(images).argmax(-1),
    'my_logits': my_logits,
    'score': lambda images: images.mean(axis=(1, 2, 3)) - 0.5,
  }


def test_there_are_examples():
  assert {'jaxadv.attacks.pgd.pgd', 'jaxadv.attacks.registry.make'} <= set(
    EXAMPLES
  )


@pytest.mark.parametrize('name', EXAMPLES)
def test_examples_run(name, on_linear, on_networks):
  example = EXAMPLES[name]
  about_detectors = name.split('.')[1] in ('detectors', 'identifiers')
  example.globs |= {
    'jax': jax,
    'key': jax.random.key(0),
    **{each: getattr(attacks, each) for each in attacks.__all__},
    **{each: getattr(defences, each) for each in defences.__all__},
    **{each: getattr(detectors, each) for each in detectors.__all__},
    'tells_apart': lambda params, *_: params,
    'deceives': lambda params, *_: params,
    'linf_ball': norms.linf_ball,
    **(on_networks if about_detectors else on_linear),
  }
  told = []
  doctest.DocTestRunner().run(example, out=told.append)
  assert not told, ''.join(told)
