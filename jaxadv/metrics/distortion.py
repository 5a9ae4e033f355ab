"""How much an attack changed the pictures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxadv.errors import UserError
from jaxadv.inputs import as_float, check_shape
from jaxadv.units import in_image_units

# By how much a value in [0, 1] is off in float32, twice at most.
_ROUNDING = 2.0**-23


class Distortion(NamedTuple):
  """Sizes of delta = attacked - clean, one a picture.

  Attributes:
    l0: int[n], pixels changed in at least one channel.
    l1: float64[n], sum of the changes of all channels in image units.
    l2: float64[n], Euclidean norm in image units.
    linf: float64[n], largest change of a channel in image units.
  """

  l0: np.ndarray
  l1: np.ndarray
  l2: np.ndarray
  linf: np.ndarray


def distortion(clean: ArrayLike, attacked: ArrayLike) -> Distortion:
  """Measures the change of every picture.

  Args:
    clean: [n, H, W, C], floats in [0, 1] or uint8.
    attacked: [n, H, W, C], likewise; one may be uint8 and the other not, and
      changes below the rounding of float32 then count as none.

  Returns:
    Image units throughout: 1 is the step from black to white.

  Raises:
    UserError: If the shapes differ, are not those of pictures, or the range
      is another one.
    DataError: If a picture holds NaN.
  """
  mixed = np.asarray(clean).dtype != np.asarray(attacked).dtype
  clean, attacked = (
    in_image_units(as_float(images, f'{name} pictures'))
    for name, images in (('clean', clean), ('attacked', attacked))
  )
  if clean.shape != attacked.shape or clean.ndim != 4:
    raise UserError(
      f'clean pictures {clean.shape} and attacked pictures {attacked.shape}; '
      'give both as [n, height, width, channels]'
    )
  check_shape(clean, 'clean pictures')
  size = np.abs(attacked - clean)
  if mixed:
    # Whoever divided by 255 may have rounded otherwise than we do.
    size[size <= _ROUNDING] = 0
  return Distortion(
    l0=(size > 0).any(axis=3).sum(axis=(1, 2)),
    l1=size.sum(axis=(1, 2, 3)),
    l2=np.sqrt((size**2).sum(axis=(1, 2, 3))),
    linf=size.max(axis=(1, 2, 3)),
  )


def exceeds(
  size: ArrayLike, epsilon: float, norm: str, num_values: int
) -> np.ndarray:
  """Tells which changes are larger than a radius by more than a rounding.

  A picture is kept in float32, so that each of its values can be off by 2^-24.
  In a sum of thousands of them that adds up.

  Args:
    size: float[...], norms of changes, as `distortion` gives them.
    epsilon: Radius in image units; a number of pixels in L0.
    norm: 'linf', 'l2', 'l1' or 'l0'.
    num_values: H * W * C, the number of values of a picture.

  Returns:
    bool[...].

  Raises:
    UserError: If the norm is unknown.
  """
  terms = {'linf': 1, 'l2': num_values**0.5, 'l1': num_values, 'l0': 0}
  if norm not in terms:
    raise UserError(f'norm is {norm!r} but must be one of {", ".join(terms)}')
  # Projections are computed in float32 too, relative to the radius.
  slack = _ROUNDING * (terms[norm] + 8 * epsilon * (norm != 'l0'))
  return np.asarray(size) > epsilon + slack
