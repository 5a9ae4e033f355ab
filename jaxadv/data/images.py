"""The one path from stored pictures to 8-bit arrays.

Every picture of every class goes through `decode` and `resize`, clean and
attacked ones alike, so that no detector can tell classes apart by how their
files were made.
"""

from __future__ import annotations

import functools
import io
import re
from typing import Any

import numpy as np
from PIL import ExifTags, Image

_MODES = {1: 'L', 3: 'RGB'}
_EIGHT_BIT = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr')
# What Pillow has a suffix for and that is no picture all the same: programs
# and drawings (EPS would be run by Ghostscript), measurements (of the first
# three Pillow knows the names only), films, and icons, which are several
# pictures.
_NO_PICTURES = {
  *('EPS', 'WMF'),
  *('BUFR', 'GRIB', 'HDF5', 'FITS'),
  *('MPEG', 'FLI'),
  *('ICO', 'ICNS', 'CUR'),
}
# How to turn a picture upright, by the EXIF tag that says how it was held.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


@functools.cache
def suffixes() -> dict[str, str]:
  """Lists the files that `decode` reads.

  Returns:
    Pillow's name of the format by the suffix in lower case: of every format
    that this Pillow reads, without those that hold no picture, or more than
    one of equal rank (EPS, WMF, BUFR, GRIB, HDF5, FITS, MPEG, FLI, icons).
  """
  return {
    suffix: name
    for suffix, name in Image.registered_extensions().items()
    if name in Image.OPEN and name not in _NO_PICTURES
  }


@functools.cache
def _formats() -> tuple[str, ...]:
  """Lists the formats to try, the usual ones first."""
  return tuple(dict.fromkeys(('PNG', 'JPEG', *suffixes().values())))


def decode(
  encoded: bytes, channels: int = 3, size: int | None = None
) -> np.ndarray:
  """Decodes a file, turns it upright, crops it to a square and resizes it.

  Args:
    encoded: The bytes of a file of one of the formats of `suffixes`. Of
      several frames or pages the first counts.
    channels: 3 (a grey picture is repeated) or 1 (a colour picture becomes
      its luma). Transparency is dropped.
    size: Height and width to give it, as `resize`; None keeps the picture as
      it is, square or not.

  Returns:
    uint8[H, W, channels], upright if the EXIF data of the file says how the
    camera was held.

  Raises:
    ValueError: If the bytes are no whole picture, or one of more than 8 bits
      a channel, be it grey or coloured.
  """
  mode = _MODES[channels]
  try:
    with Image.open(io.BytesIO(encoded), formats=_formats()) as picture:
      depth = _deep(picture, encoded)
      if not depth:
        picture.load()
        pixels = np.asarray(_upright(picture).convert(mode))
  except Image.DecompressionBombError as error:
    raise ValueError(f'it is too large: {error}') from error
  except Exception as error:  # Each format's parser fails in its own way.
    raise ValueError(
      'it is not a whole picture of a format such as PNG or JPEG'
    ) from error
  if depth:
    raise ValueError(
      f'its pixels are {depth}, not 8-bit; save it as 8-bit grey or RGB'
    )
  pixels = pixels.reshape(*pixels.shape[:2], channels)
  return pixels if size is None else resize(pixels[None], size)[0]


def _deep(picture: Any, encoded: bytes) -> str:
  """Finds out whether 8 bits a channel do not hold what is in a file.

  Of grey pictures Pillow's mode tells it, of coloured ones nothing but the
  file does: they would lose their low bytes.

  Args:
    picture: An image of Pillow's, not loaded yet.
    encoded: The bytes of its file.

  Returns:
    What its pixels are; '' if 8 bits hold them.
  """
  if picture.mode not in _EIGHT_BIT:
    return picture.mode
  match picture.format:
    case 'JPEG2000':
      # The codestream begins with SOC and SIZ; bits minus 1 at byte 42 of it.
      start = encoded.find(b'\xff\x4f\xff\x51')
      deep = encoded[start + 42] & 0x7F > 7
    case 'AVIF':
      deep = bool(encoded[encoded.find(b'av1C') + 6] & 0x40)
    case 'TIFF':
      deep = max(picture.tag_v2.get(ExifTags.Base.BitsPerSample, (1,))) > 8
    case 'PPM':
      # The decoders of maxima other than 255 take them as last argument.
      arguments = [tile[3] for tile in picture.tile]
      deep = any(isinstance(a, tuple) and a[-1] > 255 for a in arguments)
    case _:
      # Modes in the file are such as 'RGB;16B'; SGI has a codec of its own.
      deep = bool(re.search(';16[BLN]|SGI16', str(picture.tile)))
  return f'{picture.mode};16' if deep else ''


def _upright(picture: Any) -> Image.Image:
  """Turns a picture as EXIF data say; broken ones say nothing."""
  try:
    method = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
  except Exception:  # Each parser fails in its own way.
    method = None
  return picture if method is None else picture.transpose(method)


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
