import io
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ExifTags, Image

from jaxadv import units
from jaxadv.data import images


def _pictures(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_eight_bits_survive_float_and_back_on_host_and_device_alike():
  levels = np.arange(256, dtype=np.uint8)
  floats = units.to_float(levels)
  assert floats.dtype == np.float32
  assert floats[0] == 0 and floats[255] == 1 and np.all(np.diff(floats) > 0)
  np.testing.assert_allclose(floats, levels / 255, rtol=1e-6)
  np.testing.assert_array_equal(units.to_uint8(floats), levels)
  on_device = jax.jit(units.to_float)(jnp.asarray(levels))
  np.testing.assert_array_equal(on_device, floats)
  back = jax.jit(units.to_uint8)(on_device)
  assert back.dtype == np.uint8
  np.testing.assert_array_equal(back, levels)


def test_rounding_is_half_to_even_and_clips():
  values = np.array([-0.2, 0.5 / 255, 1.5 / 255, 2.5 / 255, 1.7], np.float32)
  expected = [0, 0, 2, 2, 255]
  np.testing.assert_array_equal(units.to_uint8(values), expected)
  np.testing.assert_array_equal(units.to_uint8(jnp.asarray(values)), expected)


def test_resize_takes_the_central_square():
  pictures = np.zeros((2, 8, 14, 3), np.uint8)
  pictures[:, :, 3:11] = _pictures(2, 8, 8, 3)
  np.testing.assert_array_equal(
    images.resize(pictures, 8), pictures[:, :, 3:11]
  )


@pytest.mark.parametrize('channels', [1, 3])
def test_resize_is_antialiased_and_keeps_the_mean(channels):
  # A checkerboard: without antialiasing, halving it gives black or white.
  board = np.indices((32, 32)).sum(axis=0) % 2 * 255
  board = np.repeat(board[None, ..., None], channels, -1).astype(np.uint8)
  small = images.resize(board, 8)
  assert small.shape == (1, 8, 8, channels)
  assert np.all(np.abs(small[:, 1:-1, 1:-1].astype(int) - 127) <= 2)


def test_identity_when_the_size_is_right():
  pictures = _pictures(2, 6, 6, 3)
  np.testing.assert_array_equal(images.resize(pictures, 6), pictures)


@pytest.mark.parametrize('channels', [1, 3])
def test_png_loses_nothing(channels):
  pixels = _pictures(5, 7, channels)
  decoded = images.decode(images.encode(pixels), channels)
  np.testing.assert_array_equal(decoded, pixels)


def test_decode_and_arrays_take_the_same_path():
  pixels = _pictures(20, 30, 3)
  np.testing.assert_array_equal(
    images.decode(images.encode(pixels), 1, 16),
    images.resize(images.with_channels(pixels[None], 1), 16)[0],
  )


def test_channels():
  grey = _pictures(2, 4, 4, 1)
  colour = images.with_channels(grey, 3)
  np.testing.assert_array_equal(colour, np.concatenate([grey] * 3, -1))
  np.testing.assert_array_equal(images.with_channels(colour, 1), grey)


def test_broken_pictures_are_refused():
  encoded = images.encode(_pictures(16, 16, 3))
  # A length of a chunk that is none: its parser fails in a way of its own.
  odd = encoded[:33] + b'\xff' * 8 + encoded[41:]
  for broken in (b'', b'text', encoded[: len(encoded) // 2], odd):
    with pytest.raises(ValueError, match='PNG or JPEG'):
      images.decode(broken)


@pytest.mark.parametrize('name', ['GIF', 'TIFF', 'WEBP', 'AVIF', 'JPEG2000'])
def test_a_file_cut_off_is_refused_in_every_format(name):
  if name not in images.suffixes().values():
    pytest.skip('not in this Pillow')
  whole = _saved(Image.fromarray(_pictures(16, 16, 3)), name)
  assert images.decode(whole).shape == (16, 16, 3)
  with pytest.raises(ValueError, match='not a whole picture'):
    images.decode(whole[: len(whole) // 2])


def _saved(picture, name, **options):
  file = io.BytesIO()
  picture.save(file, name, **options)
  return file.getvalue()


def _deep_png(pixels):
  """Writes uint16[H, W, 3] as PNG, which Pillow cannot."""
  height, width, _ = pixels.shape
  rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
  header = struct.pack('>IIBBBBB', width, height, 16, 2, 0, 0, 0)
  chunks = [(b'IHDR', header), (b'IDAT', zlib.compress(rows)), (b'IEND', b'')]
  return b'\x89PNG\r\n\x1a\n' + b''.join(
    struct.pack('>I', len(body))
    + kind
    + body
    + struct.pack('>I', zlib.crc32(kind + body))
    for kind, body in chunks
  )


def _deep_tiff(pixels):
  """Writes uint16[H, W, 3] as TIFF."""
  height, width, _ = pixels.shape
  body = pixels.astype('<u2').tobytes()
  bits = 8 + len(body)
  # Tag, type (3: short, 4: long), count, value.
  fields = [
    (256, 4, 1, width),
    (257, 4, 1, height),
    (258, 3, 3, bits),
    (259, 3, 1, 1),
    (262, 3, 1, 2),
    (273, 4, 1, 8),
    (277, 3, 1, 3),
    (278, 4, 1, height),
    (279, 4, 1, len(body)),
  ]
  directory = struct.pack('<H', len(fields)) + b''.join(
    struct.pack('<HHII', *field) for field in fields
  )
  header = b'II*\0' + struct.pack('<I', bits + 6)
  return header + body + struct.pack('<HHH', 16, 16, 16) + directory + bytes(4)


DEEP = np.full((4, 4, 3), 40_000, np.uint16)
DEEP_FILES = {
  'grey PNG': _saved(Image.fromarray(DEEP[..., 0]), 'PNG'),
  'grey TIFF': _saved(Image.fromarray(DEEP[..., 0]), 'TIFF'),
  'grey JPEG 2000': _saved(Image.fromarray(DEEP[..., 0]), 'JPEG2000'),
  'grey float TIFF': _saved(Image.fromarray(DEEP[..., 0] / 1.0), 'TIFF'),
  'PNG': _deep_png(DEEP),
  'TIFF': _deep_tiff(DEEP),
  'PPM': b'P6 4 4 65535\n' + DEEP.astype('>u2').tobytes(),
  'SGI': (
    struct.pack('>HBBHHHH', 474, 0, 2, 3, 4, 4, 3).ljust(512, b'\0')
    + DEEP.transpose(2, 0, 1).astype('>u2').tobytes()
  ),
}


@pytest.mark.parametrize('name', DEEP_FILES)
def test_pictures_of_sixteen_bits_lose_none_silently(name):
  encoded = DEEP_FILES[name]
  with Image.open(io.BytesIO(encoded)) as picture:
    picture.load()  # It is whole.
  with pytest.raises(ValueError, match='not 8-bit; save it as'):
    images.decode(encoded)


@pytest.mark.parametrize(
  'encoded',
  [
    b'P6 1 1 15\n\x00\x03\x0f',
    b'P3 1 1 15\n0 3 15\n',
    b'P6 1 1 255\n\x00\x33\xff',
  ],
)
def test_ppm_files_of_at_most_eight_bits_are_read(encoded):
  assert images.decode(encoded).tolist() == [[[0, 51, 255]]]
  assert images.decode(b'P1 2 1\n0 1\n', 1).tolist() == [[[255], [0]]]
  assert images.decode(b'P4 2 1\n\x40', 1).tolist() == [[[255], [0]]]


@pytest.mark.parametrize('name', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_pictures_are_turned_upright(name, orientation):
  upright = np.zeros((16, 24, 3), np.uint8)
  upright[:8, :8] = 255
  upright[8:, 16:, 0] = 255
  # The tag says where the first row and the first column of the file lie in
  # the scene: 6 puts them at the right side and at the top.
  stored = {
    1: upright,
    2: upright[:, ::-1],
    3: upright[::-1, ::-1],
    4: upright[::-1],
    5: upright.swapaxes(0, 1),
    6: upright[:, ::-1].swapaxes(0, 1),
    7: upright[::-1, ::-1].swapaxes(0, 1),
    8: upright[::-1].swapaxes(0, 1),
  }[orientation]
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = orientation
  encoded = _saved(Image.fromarray(stored), name, exif=exif)
  decoded = images.decode(encoded).astype(int)
  assert decoded.shape == upright.shape
  assert np.abs(decoded - upright).mean() < 8


def test_broken_exif_data_turn_nothing():
  pixels = _pictures(6, 8, 3)
  encoded = _saved(Image.fromarray(pixels), 'PNG', exif=b'Exif\0\0II*\0junk')
  np.testing.assert_array_equal(images.decode(encoded), pixels)


def test_of_several_frames_the_first_counts():
  frames = [Image.fromarray(_pictures(8, 8, 3, seed=seed)) for seed in (0, 1)]
  for name in ('TIFF', 'PNG'):
    encoded = _saved(frames[0], name, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(images.decode(encoded), np.asarray(frames[0]))


def test_formats_are_those_that_pillow_reads_and_that_hold_a_picture():
  read = images.suffixes()
  assert {'.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tiff', '.gif'} <= {*read}
  assert not {'.eps', '.ps', '.pdf', '.h5', '.mpg', '.ico', '.svg'} & {*read}
  eps = _saved(Image.new('RGB', (4, 4)), 'EPS')
  with pytest.raises(ValueError, match='not a whole picture'):
    images.decode(eps)
