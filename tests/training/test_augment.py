"""Random flips and shifts against NumPy."""

import jax
import numpy as np
import pytest

from jaxadv.training import augment

IMAGES = (
  np.random.default_rng(0).integers(1, 255, (64, 5, 6, 3)).astype(np.uint8)
)


def moved(image, down, right):
  """What comes in from outside is zero."""
  height, width, _ = image.shape
  found = np.zeros_like(image)
  for row in range(height):
    for column in range(width):
      y, x = row + down, column + right
      if 0 <= y < height and 0 <= x < width:
        found[row, column] = image[y, x]
  return found


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_flip_mirrors_about_half_of_the_pictures(dtype):
  images = IMAGES.astype(dtype)
  found = jax.jit(augment.random_flip)(jax.random.key(0), images)
  assert found.dtype == dtype
  same = (found == images).all((1, 2, 3))
  mirrored = (found == images[:, :, ::-1]).all((1, 2, 3))
  assert (same ^ mirrored).all()
  assert 16 < mirrored.sum() < 48


def test_shift_moves_by_every_amount_up_to_pad():
  found = np.asarray(augment.random_shift(jax.random.key(0), IMAGES, 1))
  assert found.dtype == np.uint8
  moves = set()
  for image, original in zip(found, IMAGES, strict=True):
    fitting = [
      (down, right)
      for down in (-1, 0, 1)
      for right in (-1, 0, 1)
      if (moved(original, down, right) == image).all()
    ]
    assert len(fitting) == 1
    moves.add(fitting[0])
  assert len(moves) == 9


def test_no_padding_changes_nothing():
  found = augment.random_shift(jax.random.key(0), IMAGES, 0)
  np.testing.assert_array_equal(found, IMAGES)


def test_flip_and_shift_does_both_under_other_keys():
  change = jax.jit(augment.flip_and_shift(1))
  first, second = (change(jax.random.key(n), IMAGES) for n in (0, 1))
  assert (first != second).any()
  for image, original in zip(np.asarray(first), IMAGES, strict=True):
    assert any(
      (moved(picture, down, right) == image).all()
      for picture in (original, original[:, ::-1])
      for down in (-1, 0, 1)
      for right in (-1, 0, 1)
    )
