"""The same network and pictures as Foolbox's attacks; see make_golden.py."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, norms
from jaxadv.classifier import from_function
from jaxadv.types import picture_keys


@pytest.fixture(scope='module')
def golden():
  with np.load(pathlib.Path(__file__).parent / 'golden.npz') as file:
    return dict(file)


@pytest.fixture(scope='module')
def run(golden):
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
  keys = picture_keys(jax.random.key(0), jnp.arange(len(labels)))
  classifier = from_function(logits, weights)
  return lambda attack: jax.jit(attack)(keys, classifier, images, labels)


@pytest.mark.parametrize('name', ['fgsm', 'bim', 'pgd_linf', 'pgd_l2'])
def test_budget_attacks_end_at_the_same_pictures(name, golden, run):
  epsilon = golden['epsilon_l2' if name == 'pgd_l2' else 'epsilon'].item()
  ball = (norms.l2_ball if name == 'pgd_l2' else norms.linf_ball)(epsilon)
  attack = {
    'fgsm': lambda: attacks.fgsm(epsilon),
    'bim': lambda: attacks.bim(ball, epsilon / 4, 10),
  }.get(name, lambda: attacks.pgd(ball, epsilon / 4, 10, random_start=False))
  result = run(attack())
  assert 0 < golden[f'{name}_success'].sum()
  np.testing.assert_array_equal(result.success, golden[f'{name}_success'])
  same = np.abs(result.images - golden[name]) <= 2e-6
  # A gradient entry near zero may take the other sign.
  assert same.mean() == 1 if name == 'fgsm' else same.mean() > 0.995


def test_deepfool_finds_the_same_distances(golden, run):
  result = run(attacks.deepfool(50, overshoot=0.02, num_candidates=10))
  size = norms.l2(result.images - golden['images'])
  expected = norms.l2(golden['deepfool'] - golden['images'])
  assert jnp.all(result.success)
  np.testing.assert_allclose(jnp.median(size), jnp.median(expected), rtol=0.01)
  np.testing.assert_allclose(size, expected, rtol=0.02)
