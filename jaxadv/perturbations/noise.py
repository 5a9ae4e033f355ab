"""Noise that a natural filter takes out of a picture, put back or removed."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.errors import UserError
from jaxadv.inputs import as_float
from jaxadv.norms import per_row
from jaxadv.types import Images, Keys
from jaxadv.utils import check_range


def _separable(kernel: np.ndarray) -> Callable[[jax.Array], jax.Array]:
  """Filters height, then width, with one odd kernel; reflected border."""
  radius = len(kernel) // 2

  def along(images: Images, axis: int) -> jax.Array:
    widths = [(0, 0)] * 4
    widths[axis] = (radius, radius)
    padded = jnp.pad(images, widths, mode='reflect')
    size = images.shape[axis]
    # A sum of shifted slices: far faster on CPU than a depthwise convolution.
    return sum(
      weight * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
      for i, weight in enumerate(kernel.tolist())
    )

  return lambda images: along(along(images, 1), 2)


def _laplacian(images: Images) -> Images:
  """Sum of the four neighbours minus four times the centre."""
  height, width = images.shape[1:3]
  padded = jnp.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode='reflect')
  rows, columns = padded[:, :, 1 : width + 1], padded[:, 1 : height + 1]
  return (
    rows[:, :-2] + rows[:, 2:] + columns[:, :, :-2] + columns[:, :, 2:]
  ) - 4 * images


_BELL = np.exp(-(np.arange(-2, 3) ** 2) / 2)

FILTERS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'gaussian': _separable(_BELL / _BELL.sum()),
  'laplacian': _laplacian,
  'integral': _separable(np.full(5, 1 / 5)),
}


def filter_noise(
  sign: int, *, filter: str = 'gaussian', gain: float = 1.0
) -> Callable[[Keys, Images], Images]:
  """Adds a picture's own filter noise to it, or subtracts it.

  The noise is `images - filtered`. With a low-pass filter and gain 1, adding
  sharpens (2x - F(x)) and subtracting leaves the blurred picture F(x); with
  the Laplacian, subtracting leaves the filter's response.

  Args:
    sign: 1 to add (NI+), -1 to subtract (NI-).
    filter: 'gaussian' (5x5, sigma 1), 'laplacian' (3x3, four neighbours),
      'integral' (5x5 box mean), or 'mixed', which draws one a picture. All
      work per channel and reflect at the border.
    gain: Factor on the noise, in [0, inf).

  Returns:
    `(keys, images) -> images`: key[B] (read by 'mixed' only) and
    [B, H, W, C], floating in [0, 1] or uint8, to float32, clipped to [0, 1];
    sides of at least 3 pixels.

  Raises:
    UserError: If the sign or filter is none of these, or gain is negative.

  The paper names the filters as examples; sizes, gain and border are our
  choice, and "integral" as box mean is our reading.

  References:
    Agarwal et al., Exploring Robustness Connection between Artificial and
    Natural Adversarial Examples, CVPR workshops 2022, section 3 (NI+, NI-).
  """
  if sign not in (1, -1):
    raise UserError(f'sign is {sign!r} but must be 1 (NI+) or -1 (NI-)')
  if filter not in (*FILTERS, 'mixed'):
    raise UserError(
      f'filter is {filter!r} but must be one of {", ".join(FILTERS)}, mixed'
    )
  check_range('gain', gain, 0, float('inf'))

  def mixed(keys: Keys, images: Images) -> Images:
    draw = lambda key: jax.random.randint(key, (), 0, len(FILTERS), jnp.int32)
    choice = per_row(jax.vmap(draw)(keys), images)
    return jnp.select(
      [choice == i for i in range(len(FILTERS))],
      [apply(images) for apply in FILTERS.values()],
    )

  def perturb(keys: Keys, images: Images) -> Images:
    images = jnp.asarray(as_float(images))
    if filter == 'mixed':
      filtered = mixed(keys, images)
    else:
      filtered = FILTERS[filter](images)
    return jnp.clip(images + sign * gain * (images - filtered), 0, 1)

  return perturb
