"""Total variance minimisation: its minimum, its draws, and attacks on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxadv import attacks, losses
from jaxadv.attacks.adaptive import eot
from jaxadv.defences.purified import purified
from jaxadv.defences.total_variance import (
  OBJECTIVES,
  reconstruct,
  total_variance,
)
from jaxadv.errors import UserError
from jaxadv.norms import linf_ball
from jaxadv.types import picture_keys

over_objectives = pytest.mark.parametrize('objective', OBJECTIVES)


def keys(num, seed=0):
  return picture_keys(jax.random.key(seed), jnp.arange(num))


def objective_value(z, x, keep, weight, objective, softening=0.0):
  """The formulas of the docstring, for one picture, in float64."""
  norm = lambda square: np.sqrt(square + softening**2)
  error = ((z - x) ** 2)[keep].sum()
  down, right = np.diff(z, axis=0) ** 2, np.diff(z, axis=1) ** 2
  if objective == 'printed':
    lines = [norm(down.sum(axis=1)), norm(right.sum(axis=0))]
    return norm(error) + weight * sum(line.sum() for line in lines)
  square = np.zeros_like(z)
  square[:-1] += down
  square[:, :-1] += right
  return error / 2 + weight * (norm(square) - softening).sum()


def pictures(num, height, width, channels=2, seed=0):
  rng = np.random.default_rng(seed)
  smooth = rng.uniform(size=(num, 1, 1, channels)) * np.ones((height, width, 1))
  smooth[:, height // 2 :] = rng.uniform(size=(num, 1, 1, channels))
  noisy = smooth + 0.05 * rng.normal(size=smooth.shape)
  keep = rng.uniform(size=smooth.shape) < 0.5
  return np.clip(noisy, 0, 1).astype(np.float32), keep


def generic_minimum(x, keep, weight, objective):
  """What SciPy finds; norms have kinks, softened ones, ever less, have none."""
  best = np.full(x.shape, 0.5)
  for softening in (1e-1, 1e-2, 1e-3, 1e-4):
    value = lambda flat, softening=softening: objective_value(
      flat.reshape(x.shape), x, keep, weight, objective, softening
    )
    found = optimize.minimize(value, best.ravel(), method='L-BFGS-B')
    best = found.x.reshape(x.shape)
  return best


@over_objectives
@pytest.mark.parametrize('weight', [0.03, 0.3])
def test_finds_the_minimum_that_a_generic_solver_finds(objective, weight):
  images, keep = pictures(1, 4, 5, channels=1)
  (z,) = reconstruct(images, keep, weight, 1500, objective=objective)
  x, z, keep = np.float64(images[0]), np.float64(z), keep[0]
  best = generic_minimum(x, keep, weight, objective)
  value = lambda z: objective_value(z, x, keep, weight, objective)
  assert value(z) <= value(best) + 1e-4 * value(x)
  assert value(best) <= value(z) + 2e-3 * value(x)
  if objective == 'released':  # Strictly convex where values are kept.
    np.testing.assert_allclose(z[keep], best[keep], atol=5e-3)


@over_objectives
def test_the_default_number_of_steps_comes_close(objective):
  images, keep = pictures(2, 20, 16)
  run = jax.jit(
    lambda steps: reconstruct(images, keep, 0.03, steps, objective=objective)
  )
  value = lambda z: np.array(
    [
      objective_value(np.float64(z), x, kept, 0.03, objective)
      for z, x, kept in zip(z, images, keep, strict=True)
    ]
  )
  best = value(np.asarray(run(1000)))
  assert (value(np.asarray(run(100))) < 1.01 * best).all()


@over_objectives
def test_dropped_values_are_never_read(objective):
  images, keep = pictures(2, 6, 6)
  other = np.where(keep, images, 1 - images)
  np.testing.assert_array_equal(
    reconstruct(images, keep, num_steps=20, objective=objective),
    reconstruct(other, keep, num_steps=20, objective=objective),
  )


def test_what_nothing_is_known_of_has_no_content():
  images, keep = pictures(1, 4, 4)
  found = np.asarray(reconstruct(images, np.zeros_like(keep)))
  assert np.ptp(found) < 1e-6


@over_objectives
def test_a_linear_ramp_is_filled_in(objective):
  """Nothing to smooth with a tiny weight, and one value to fill in."""
  ramp = np.linspace(0.2, 0.8, 9, dtype=np.float32)
  images = np.broadcast_to(ramp[:, None, None], (9, 9, 1))[None]
  keep = np.ones(images.shape, bool)
  keep[0, 4, 4] = False
  found = reconstruct(images, keep, 1e-3, 1000, objective=objective)
  np.testing.assert_allclose(found, images, atol=5e-3)
  # Between its neighbours in its column, or like those in its row.
  assert 0.42 < found[0, 4, 4, 0] < 0.58


def test_draws_come_from_the_rows_key_alone():
  images, _ = pictures(6, 8, 8)
  purify = jax.jit(
    lambda keys, images: total_variance().purify(keys, None, (), images)
  )
  found = purify(keys(6), images)
  assert found.min() >= 0 and found.max() <= 1
  np.testing.assert_array_equal(found, purify(keys(6), images))
  alone = purify(keys(6)[3:4], images[3:4])
  np.testing.assert_allclose(alone, found[3:4], atol=1e-5)
  other = purify(keys(6, seed=1), images)
  assert np.abs(other - found).max(axis=(1, 2, 3)).min() > 0.01


def test_takes_noise_out_and_leaves_an_edge():
  rng = np.random.default_rng(3)
  clean = np.full((4, 16, 16, 1), 0.3, np.float32)
  clean[:, :, 8:] = 0.7
  noisy = clean + rng.uniform(-0.1, 0.1, clean.shape).astype(np.float32)
  found = total_variance(weight=0.05, objective='released').purify(
    keys(4), None, (), noisy
  )
  error = lambda images: np.abs(images - clean).mean()
  assert error(found) < 0.4 * error(noisy)
  # Half of 128 values a side pull against 16 differences of weight 0.05.
  contrast = found[:, :, 10:].mean() - found[:, :, :6].mean()
  assert abs(contrast - (0.4 - 2 * 0.05 * 16 / 64)) < 0.015


@pytest.fixture(scope='module')
def defended(trained):
  # Few steps: the attack below has to walk through all of them.
  return purified(trained.classifier, total_variance(num_steps=10))


def test_purified_is_the_classifier_of_purified_pictures(trained, defended):
  purifier = total_variance(num_steps=10)
  images = purifier.purify(keys(40), None, (), trained.images)
  np.testing.assert_allclose(
    defended(trained.images, keys(40)), trained.classifier(images), rtol=1e-4
  )


def test_the_attacker_who_knows_the_defence_breaks_it(trained, defended):
  """BPDA and EOT find pictures that fool the chain with fresh draws."""
  attack = attacks.pgd(linf_ball(0.08), 0.02, 10, random_start=False)

  @jax.jit
  def fooled(images):
    draw = lambda seed: losses.succeeded(
      defended(images, keys(40, seed)), trained.labels
    ).mean()
    return jnp.mean(jnp.stack([draw(seed) for seed in (5, 6, 7)]))

  aware = jax.jit(attack)(
    keys(40), eot(defended, 4), trained.images, trained.labels
  )
  assert np.abs(aware.images - trained.images).max() <= 0.08 + 1e-6
  assert fooled(trained.images) < 0.5
  assert fooled(aware.images) > 0.8


@pytest.mark.parametrize(
  'options, named',
  [
    ({'drop': 1.0}, 'drop is 1.0'),
    ({'weight': -1.0}, 'weight is -1.0'),
    ({'num_steps': 0}, 'num_steps is 0'),
    ({'objective': 'bregman'}, 'printed, released'),
  ],
)
def test_misuse_is_explained(options, named):
  with pytest.raises(UserError, match=named):
    total_variance(**options)
