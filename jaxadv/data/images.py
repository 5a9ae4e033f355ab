"""The one path from stored pictures to 8-bit arrays.

Every picture of every class goes through `decode` and `resize`, clean and
attacked ones alike, so that no detector can tell classes apart by how their
files were made.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

_MODES = {1: 'L', 3: 'RGB'}
_EIGHT_BIT = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr')


def decode(
  encoded: bytes, channels: int = 3, size: int | None = None
) -> np.ndarray:
  """Decodes a PNG or JPEG file, crops it to a square and resizes it.

  Args:
    encoded: The bytes of the file.
    channels: 3 (a grey picture is repeated) or 1 (a colour picture becomes
      its luma). Transparency is dropped.
    size: Height and width to give it, as `resize`; None keeps the picture as
      it is, square or not.

  Returns:
    uint8[H, W, channels].

  Raises:
    ValueError: If the bytes are no PNG or JPEG picture of 8 bits a channel.
  """
  try:
    with Image.open(io.BytesIO(encoded), formats=('PNG', 'JPEG')) as picture:
      if picture.mode not in _EIGHT_BIT:
        raise ValueError(f'its pixels are {picture.mode}, not 8-bit')
      pixels = np.asarray(picture.convert(_MODES[channels]))
  except (OSError, SyntaxError, Image.DecompressionBombError) as error:
    raise ValueError('it is not a whole PNG or JPEG picture') from error
  pixels = pixels.reshape(*pixels.shape[:2], channels)
  return pixels if size is None else resize(pixels[None], size)[0]


def encode(pixels: np.ndarray) -> bytes:
  """Encodes a picture as PNG, which loses nothing.

  Args:
    pixels: uint8[H, W, 1 or 3].

  Returns:
    The bytes of the file.
  """
  file = io.BytesIO()
  Image.fromarray(_drop_single(pixels)).save(file, 'PNG')
  return file.getvalue()


def resize(images: np.ndarray, size: int) -> np.ndarray:
  """Crops the central square and resizes it, by PIL's bicubic filter.

  The filter widens when it shrinks a picture (antialiasing) and rounds to 8
  bit. Square pictures of the right size come back as they are.

  Args:
    images: uint8[N, H, W, C] with C of 1 or 3.
    size: Height and width to give them.

  Returns:
    uint8[N, size, size, C].
  """
  height, width, channels = images.shape[1:]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  images = images[:, top : top + side, left : left + side]
  if side == size:
    return images
  resized = np.empty((len(images), size, size, channels), np.uint8)
  for row, pixels in zip(resized, images, strict=True):
    picture = Image.fromarray(_drop_single(pixels))
    picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    row[:] = np.asarray(picture).reshape(row.shape)
  return resized


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
  """Repeats grey pictures over three channels, or takes luma of colour ones.

  Args:
    images: uint8[N, H, W, 1 or 3].
    channels: 1 or 3.

  Returns:
    uint8[N, H, W, channels]; luma is PIL's (ITU-R 601-2).
  """
  if images.shape[-1] == channels:
    return images
  if channels == 3:
    return np.repeat(images, 3, axis=-1)
  grey = [np.asarray(Image.fromarray(pixels).convert('L')) for pixels in images]
  return np.stack(grey)[..., None]


def _drop_single(pixels: np.ndarray) -> np.ndarray:
  """Takes the channel axis from a grey picture, as PIL wants it."""
  return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
