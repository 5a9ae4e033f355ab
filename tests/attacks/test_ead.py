"""EAD against Foolbox, and what its shrinkage is for."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, norms


@pytest.fixture(scope='module')
def recorded():
  with np.load(pathlib.Path(__file__).parent / 'golden_cw.npz') as file:
    return dict(file)


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('ead', {}),
    ('ead_l1', {'decision_rule': 'l1'}),
    ('ead_targeted', {'targeted': True}),
  ],
)
def test_same_pictures_as_foolbox(name, options, golden, recorded, run):
  attack = attacks.ead(
    100,
    binary_search_steps=6,
    initial_const=0.01,
    abort_early=False,
    **options,
  )
  result = run(attack)
  delta, expected = (
    pictures - golden['images'] for pictures in (result.images, recorded[name])
  )
  assert jnp.all(result.success)
  # A rounding can let a pixel go or hold it, in a row or two.
  for norm in (norms.l1, norms.l2):
    ratio = norm(delta) / norm(expected)
    np.testing.assert_allclose(jnp.median(ratio), 1, rtol=0.01)
    assert jnp.mean(jnp.abs(ratio - 1) < 1e-3) > 0.8
  close = np.abs(delta - expected) < 1e-4
  assert close.mean() > 0.95
  # Drawn back to their clean value, many pixels are exactly there.
  assert jnp.mean(delta == 0) > 0.4
