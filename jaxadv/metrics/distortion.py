"""How much an attack changed the pictures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxadv.errors import UserError


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
    attacked: [n, H, W, C], likewise; one may be uint8 and the other not.

  Returns:
    Image units throughout: 1 is the step from black to white.

  Raises:
    UserError: If the shapes differ or are not those of pictures.
  """
  clean, attacked = in_image_units(clean), in_image_units(attacked)
  if clean.shape != attacked.shape or clean.ndim != 4:
    raise UserError(
      f'clean pictures {clean.shape} and attacked pictures {attacked.shape}; '
      'give both as [n, height, width, channels]'
    )
  size = np.abs(attacked - clean)
  return Distortion(
    l0=(size > 0).any(axis=3).sum(axis=(1, 2)),
    l1=size.sum(axis=(1, 2, 3)),
    l2=np.sqrt((size**2).sum(axis=(1, 2, 3))),
    linf=size.max(axis=(1, 2, 3)),
  )


def in_image_units(images: ArrayLike) -> np.ndarray:
  """Gives pictures as float64 in [0, 1]; uint8 is divided by 255."""
  images = np.asarray(images)
  return images / 255 if images.dtype == np.uint8 else images.astype(float)
