"""DDN against other libraries, on the grid of levels, without a gradient."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, norms
from jaxadv.classifier import from_function
from jaxadv.types import picture_keys
from jaxadv.units import to_float, to_uint8


@pytest.fixture(scope='module')
def recorded():
  with np.load(pathlib.Path(__file__).parent / 'golden_cw.npz') as file:
    return dict(file)


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('ddn', {}),
    ('ddn_targeted', {'targeted': True}),
    ('ddn_foolbox', {'levels': None}),
  ],
)
def test_same_pictures_as_the_other_libraries(
  name, options, golden, recorded, run
):
  result = run(attacks.ddn(100, **options))
  size = norms.l2(result.images - golden['images'])
  expected = norms.l2(recorded[name] - golden['images'])
  assert jnp.all(result.success)
  np.testing.assert_allclose(jnp.median(size), jnp.median(expected), rtol=0.01)
  close = np.abs(result.images - recorded[name]) < 1e-4
  assert close.mean() > 0.95


def test_successes_survive_8_bits(trained):
  keys = picture_keys(jax.random.key(0), jnp.arange(40))
  attack = jax.jit(attacks.ddn(20))
  images = to_float(to_uint8(trained.images))
  result = attack(keys, trained.classifier, images, trained.labels)
  np.testing.assert_array_equal(
    to_float(to_uint8(result.images)), result.images
  )
  assert result.success.mean() > 0.9


def test_without_a_gradient_the_key_gives_a_direction(linear):
  blind = from_function(
    lambda images: jax.lax.stop_gradient(linear.classifier(images))
  )
  attack = jax.jit(attacks.ddn(10, levels=None))
  runs = []
  for seed in (0, 1):
    keys = picture_keys(jax.random.key(seed), jnp.arange(24))
    runs.append(attack(keys, blind, linear.images, linear.labels))
  assert all(0 < run.success.mean() for run in runs)
  both = runs[0].success & runs[1].success
  change = norms.linf(runs[0].images - runs[1].images)
  assert jnp.any(both) and jnp.all(change[both] > 0)
