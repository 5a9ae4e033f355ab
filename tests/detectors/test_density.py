"""The rank of a likelihood among those of clean pictures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.detectors.density import (
  DensityState,
  density_detector,
  rank_among,
)
from jaxadv.models.pixelcnn import PixelCNN, bits_per_dim, init_pixelcnn
from jaxadv.units import to_float

MODULE = PixelCNN(num_filters=3, num_blocks=0, num_mixtures=2, channels=1)


@functools.cache
def params():
  init = functools.partial(init_pixelcnn, module=MODULE)
  return jax.jit(init)(jax.random.key(0))['params']


def pictures(seed, num):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (num, 4, 4, 1)).astype(np.uint8)


def test_score_is_the_rank_among_the_training_pictures():
  train, test = pictures(0, 30), to_float(jnp.asarray(pictures(1, 12)))
  state = rank_among(MODULE, params(), train)
  score = jax.jit(density_detector(MODULE).score)
  found = score(None, None, state, test)
  bits = jax.jit(functools.partial(bits_per_dim, MODULE))
  likelihood = lambda images: -bits(params(), images)
  # The formula as it is printed.
  known = likelihood(to_float(jnp.asarray(train)))
  above = (known[:, None] <= likelihood(test)[None]).sum(axis=0)
  np.testing.assert_allclose(found, -(1 + above) / 31, rtol=1e-6)
  assert len(set(found.tolist())) > 5


@pytest.mark.parametrize(
  'offsets, wanted',
  [((-3, -2, -1), 1 / 4), ((-1, 0, 1), 3 / 4), ((1, 2, 3), 1)],
)
def test_the_ends_of_the_rank_and_ties(offsets, wanted):
  images = to_float(jnp.asarray(pictures(2, 1)))

  # In one program, so that the bits of the tie are the same ones.
  @jax.jit
  def score(images):
    bits = bits_per_dim(MODULE, params(), images)
    state = DensityState(params(), bits + jnp.array(offsets))
    return density_detector(MODULE).score(None, None, state, images)

  np.testing.assert_allclose(score(images), [-wanted], rtol=1e-6)


@pytest.mark.slow
def test_surrogate_is_the_raw_score_and_rises_along_its_gradient():
  detector = density_detector(MODULE, rank=False)
  images = to_float(jnp.asarray(pictures(3, 4)))
  state = DensityState(params(), jnp.zeros(1))
  value = jax.jit(detector.surrogate)(None, None, state, images)
  np.testing.assert_array_equal(
    value, jax.jit(detector.score)(None, None, state, images)
  )
  gradient = jax.jit(
    jax.grad(lambda x: detector.surrogate(None, None, state, x).sum())
  )(images)
  moved = jnp.clip(images + 0.02 * jnp.sign(gradient), 0, 1)
  assert (detector.surrogate(None, None, state, moved) > value).all()


def test_pictures_are_rounded_to_8_bit_first():
  detector = density_detector(MODULE, rank=False)
  images = to_float(jnp.asarray(pictures(3, 4)))
  state = DensityState(params(), jnp.zeros(1))
  score = jax.jit(detector.score)
  np.testing.assert_allclose(
    score(None, None, state, images + 0.3 / 255),
    score(None, None, state, images),
    rtol=1e-5,
  )
