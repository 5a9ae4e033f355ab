"""PixelCNN++: the probability of a picture, level by level in raster order.

Two streams of convolutions never see what they predict. `down` sees the rows
above, `right` the pixels to the left as well and what `down` found. So the
network can also run along with a picture that is still being made: a
convolution then remembers the rows it needs, and a pixel costs a pixel's work.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxadv import norms
from jaxadv.errors import UserError
from jaxadv.models import layers
from jaxadv.types import PyTree
from jaxadv.units import to_float, to_uint8

NUM_LEVELS = 256
_STAGES = 3  # at full, half and quarter size
_SMALLEST_LOG_SCALE = -7.0


class Place(NamedTuple):
  """Where a network that runs along with a picture stands.

  A stage of level s works at 1 / 2**s of the picture's size and has something
  new to see at every 2**s-th row and column only.

  Attributes:
    row: int32[], of the picture.
    column: int32[] of the picture; 0 in the stream of whole rows.
    width: Columns of the picture.
  """

  row: jax.Array
  column: jax.Array
  width: int

  def has_news(self, level: int) -> jax.Array:
    """Whether a stage sees something new here, bool[]."""
    return (self.row % 2**level == 0) & (self.column % 2**level == 0)


def _concat_elu(x: jax.Array) -> jax.Array:
  return nn.elu(jnp.concatenate([x, -x], axis=-1))


class _Conv(nn.Module):
  """Convolves a pixel with those above it, its weights normalised.

  Attributes:
    features: Channels of the output.
    window: Rows, which end with the pixel's, and columns.
    right: Whether the columns end with the pixel's; else it is in their
      middle, and `at` stands for a whole row.
    level: The level of the input, see `Place`.
    stride: 1 or 2.
    gain: Initial length of the kernels.
  """

  features: int
  window: tuple[int, int] = (1, 1)
  right: bool = False
  level: int = 0
  stride: int = 1
  gain: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array, at: Place | None = None) -> jax.Array:
    rows, columns = self.window
    shape = (rows, columns, x.shape[-1], self.features)
    each, kind = (self.features,), jnp.float32
    kernel = self.param('kernel', nn.initializers.normal(1.0), shape, kind)
    gain = self.param('gain', nn.initializers.constant(self.gain), each, kind)
    bias = self.param('bias', nn.initializers.zeros, each, kind)
    length = jnp.sqrt(jnp.sum(kernel**2, axis=(0, 1, 2)))
    sides = (columns - 1, 0) if self.right else (columns // 2, columns // 2)
    padding: Any = ((rows - 1, 0), sides)
    if at is not None:
      x, padding = self._remembered(x, sides, at), 'VALID'
    strides = (self.stride, self.stride)
    return layers.conv(x, kernel * (gain / length), strides, padding) + bias

  def _remembered(self, x, sides, at):
    """Puts what is new below the rows seen before; gives the window there.

    A column of the memory holds the last rows seen in it, so those to the
    left of the pixel have moved on to its row already.
    """
    batch, _, wide, channels = x.shape
    rows, (left, right) = self.window[0], sides
    whole = (batch, rows, left + (at.width >> self.level) + right, channels)
    memory = self.variable('cache', 'rows', jnp.zeros, whole, x.dtype)
    start, zero = at.column >> self.level, jnp.int32(0)
    place = (zero, zero, left + start, zero)
    seen = lax.dynamic_slice(memory.value, place, (batch, rows, wide, channels))
    news = jnp.concatenate([seen[:, 1:], x], axis=1)
    kept = jnp.where(at.has_news(self.level), news, seen)
    memory.value = lax.dynamic_update_slice(memory.value, kept, place)
    size = (batch, rows, left + wide + right, channels)
    return lax.dynamic_slice(memory.value, (zero, zero, start, zero), size)


class _Block(nn.Module):
  """A gated residual block that may read maps aside."""

  features: int
  right: bool
  level: int
  dropout: float

  @nn.compact
  def __call__(self, x, asides: Sequence[jax.Array], at, train: bool):
    conv = functools.partial(
      _Conv,
      window=(2, 2) if self.right else (2, 3),
      right=self.right,
      level=self.level,
    )
    hidden = conv(self.features)(_concat_elu(x), at)
    if asides:
      aside = _concat_elu(jnp.concatenate(asides, axis=-1))
      hidden += _Conv(self.features)(aside)
    hidden = _concat_elu(hidden)
    hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
    # Small at first, so that a deep network starts near the identity.
    change = conv(2 * self.features, gain=0.1)(hidden, at)
    value, gate = jnp.split(change, 2, axis=-1)
    return x + value * nn.sigmoid(gate)


class _Upsample(nn.Module):
  """A transposed convolution of a 2x2 kernel and stride 2."""

  features: int
  right: bool
  level: int

  @nn.compact
  def __call__(self, x, at):
    # Of windows that do not overlap: four pixels side by side from each one.
    four = _Conv(4 * self.features, right=self.right, level=self.level)(x, at)
    batch, height, width, _ = four.shape
    four = four.reshape(batch, height, width, 2, 2, -1).swapaxes(2, 3)
    fine = four.reshape(batch, 2 * height, 2 * width, -1)
    if at is None:
      return fine
    half = self.level - 1
    fine = lax.dynamic_slice_in_dim(fine, (at.row >> half) % 2, 1, axis=1)
    if not self.right:
      return fine
    return lax.dynamic_slice_in_dim(fine, (at.column >> half) % 2, 1, axis=2)


class _Stream(nn.Module):
  """One of the two streams: down to a quarter of the size and up again."""

  num_filters: int
  num_blocks: int
  dropout: float
  right: bool

  @nn.compact
  def __call__(self, x, maps: Sequence[jax.Array] = (), at=None, train=False):
    """Gives what the other stream reads, a map a block; the last is the end.

    Args:
      x: The picture moved on by a pixel (right) or a row (down).
      maps: What `down` gave, for `right`.
      at: Where the stream stands, None for the whole picture.
      train: Whether dropout is on.
    """
    conv = functools.partial(_Conv, self.num_filters, right=self.right)
    make = functools.partial(_Block, self.num_filters, self.right)
    read = iter(maps)

    def others(level):
      """The next map of the other stream at this place, if there is one."""
      found = list(itertools.islice(read, 1))
      if at is None:
        return found
      column = at.column >> level
      return [lax.dynamic_slice_in_dim(m, column, 1, axis=2) for m in found]

    if self.right:
      found = []
      x = conv((2, 1))(x, at) + others(0)[0]
    else:
      found = [conv((1, 3))(x, at)]
      x = conv((2, 3))(x, at)
    kept = [x]
    for level in range(_STAGES):
      if level:
        window = (2, 2) if self.right else (2, 3)
        x = conv(window, level=level - 1, stride=2)(x, at)
        kept.append(x)
      for _ in range(self.num_blocks):
        x = make(level, self.dropout)(x, others(level), at, train)
        kept.append(x)
        found.append(x)
    x = kept.pop()
    for level in reversed(range(_STAGES)):
      for _ in range(self.num_blocks + (level < _STAGES - 1)):
        asides = [*others(level), kept.pop()]
        x = make(level, self.dropout)(x, asides, at, train)
        found.append(x)
      if level:
        x = _Upsample(self.num_filters, self.right, level)(x, at)
    return found


class PixelCNN(nn.Module):
  """PixelCNN++: the parameters of the distribution of every pixel.

  Those of a pixel depend on the pixels before it in raster order and on no
  other. `level_logits` and `log_likelihood` read them.

  Attributes:
    num_filters: Channels of the hidden maps (CIFAR-10: 160, 28x28 grey: 40).
    num_blocks: Residual blocks of a stage and stream.
    num_mixtures: Logistics that a level's distribution is mixed of.
    channels: Channels of the pictures.
    dropout: Rate in training, in [0, 1).

  Departs from the paper: kernels start at a given length instead of one that
  is fitted to the first batch, and the stream of whole rows is enlarged by
  2x2 kernels in place of 2x3.

  References:
    Salimans et al., PixelCNN++, 2017, https://arxiv.org/abs/1701.05517,
    section 2 and figure 2.
  """

  num_filters: int = 160
  num_blocks: int = 5
  num_mixtures: int = 10
  channels: int = 3
  dropout: float = 0.5

  def setup(self):
    """Makes the streams and the layer of parameters."""
    stream = functools.partial(
      _Stream, self.num_filters, self.num_blocks, self.dropout
    )
    self.down = stream(right=False)
    self.right = stream(right=True)
    self.head = _Conv(self.num_mixtures * _num_parameters(self.channels))

  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Computes the parameters of all pixels.

    Args:
      images: float32[B, H, W, C] in [0, 1]; H and W divisible by 4.
      train: Whether dropout is on; it draws from the stream 'dropout'.

    Returns:
      float32[B, H, W, M], of which `level_logits` makes distributions.

    Raises:
      UserError: If the pictures have another number of channels, or a side
        that is not divisible by 4.
    """
    self.check_pictures(images)
    x = _with_ones(images * 255)
    above = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    before = jnp.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
    maps = self.down(above, train=train)
    return self.head(nn.elu(self.right(before, maps, train=train)[-1]))

  def check_pictures(self, images: jax.Array) -> None:
    """Refuses pictures that the network cannot take; see `__call__`."""
    height, width, channels = images.shape[1:]
    cell = 2 ** (_STAGES - 1)
    if channels != self.channels or height % cell or width % cell:
      raise UserError(
        f'pictures are {height}x{width}x{channels}, but this PixelCNN takes '
        f'{self.channels} channels and sides divisible by {cell}; build it '
        'with other channels or pad the pictures'
      )

  def read_row(self, above: jax.Array, at: Place) -> list[jax.Array]:
    """Runs the stream `down` on one row, see `in_raster_order`."""
    return self.down(above, at=at)

  def read_pixel(
    self, before: jax.Array, maps: Sequence[jax.Array], at: Place
  ) -> jax.Array:
    """Runs the stream `right` on one pixel, see `in_raster_order`."""
    return self.head(nn.elu(self.right(before, maps, at)[-1]))


def _num_parameters(channels: int) -> int:
  """Weight, means, scales, and how means depend on earlier channels."""
  return 1 + 2 * channels + channels * (channels - 1) // 2


def _with_ones(levels: jax.Array) -> jax.Array:
  """Scales levels to [-1, 1]; a channel of ones tells pixels from padding."""
  ones = jnp.ones((*levels.shape[:-1], 1), levels.dtype)
  return jnp.concatenate([levels / 127.5 - 1, ones], axis=-1)


def init_pixelcnn(key: jax.Array, module: PixelCNN) -> PyTree:
  """Draws the initial parameters, made to be jitted; they fit any size.

  Args:
    key: One key.
    module: The network.

  Returns:
    `{'params': ...}`.
  """
  side = 2 ** (_STAGES - 1)
  images = jnp.zeros((1, side, side, module.channels), jnp.float32)
  leaves, structure = jax.tree.flatten_with_path(module.init(key, images))
  # XLA needs minutes for a draw of each; as one, it drops them unread.
  sizes = [x.size * (path[-1].key == 'kernel') for path, x in leaves]
  draws = jnp.split(
    jax.random.normal(key, (sum(sizes),), jnp.float32), np.cumsum(sizes)[:-1]
  )
  drawn = [
    draw.reshape(leaf.shape) if draw.size else leaf
    for draw, (_, leaf) in zip(draws, leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, drawn)


def log_probabilities(
  parameters: jax.Array,
  levels: jax.Array,
  candidates: jax.Array,
  of: slice = slice(None),
) -> jax.Array:
  """Log-probabilities of levels, a channel given the earlier ones.

  A channel's level is distributed as a mixture of logistics, rounded to the
  256 levels; means of green depend on red, means of blue on both.

  Args:
    parameters: float32[..., M], what `PixelCNN` gives for a pixel.
    levels: float32[..., C] in [0, 255], the pixel itself.
    candidates: float32[..., C, V], levels whose probability is asked for.
    of: The channels that `candidates` are of, all by default.

  Returns:
    float32[..., C, V], in nats.

  References:
    Salimans et al., PixelCNN++, 2017, section 2.1 and 2.2. Song et al.,
    PixelDefend, 2018, https://arxiv.org/abs/1710.10766, and its code, after
    which every channel has a mixture of its own, with the same weights.
  """
  channels = levels.shape[-1]
  split = parameters.reshape(
    *parameters.shape[:-1], _num_parameters(channels), -1
  )
  weights, means, log_scales, slopes = jnp.split(
    split, (1, 1 + channels, 1 + 2 * channels), axis=-2
  )
  # Row c of the matrix: how the mean of channel c depends on earlier ones.
  earlier = jnp.zeros((*levels.shape, *means.shape[-2:]), means.dtype)
  earlier = earlier.at[(..., *np.tril_indices(channels, -1), slice(None))].set(
    jnp.tanh(slopes)
  )
  means += jnp.sum(earlier * (levels / 127.5 - 1)[..., None, :, None], -2)
  bins = _log_bins(
    means[..., of, :, None],
    jnp.maximum(log_scales, _SMALLEST_LOG_SCALE)[..., of, :, None],
    candidates[..., None, :],
  )
  log_weights = jax.nn.log_softmax(weights)[..., None]
  return jax.nn.logsumexp(bins + log_weights, axis=-2)


def _log_bins(
  means: jax.Array, log_scales: jax.Array, levels: jax.Array
) -> jax.Array:
  """Log-probability that a logistic variable is rounded to a level.

  With s the sigmoid and a < b the ends of the bin in units of the scale,
  s(b) - s(a) = s(b) s(-a) (1 - exp(a - b)): no digits cancel.
  """
  inverse = jnp.exp(-log_scales)
  centre = (levels / 127.5 - 1 - means) * inverse
  half = inverse / 255
  inside = jnp.log(-jnp.expm1(-2 * half))
  # The outermost levels also take what lies beyond.
  first, last = levels < 0.5, levels > NUM_LEVELS - 1.5
  return (
    jnp.where(last, 0, jax.nn.log_sigmoid(centre + half))
    + jnp.where(first, 0, jax.nn.log_sigmoid(half - centre))
    + jnp.where(first | last, 0, inside)
  )


def level_logits(parameters: jax.Array, images: jax.Array) -> jax.Array:
  """Distributions over the 256 levels, a channel given the earlier ones.

  Args:
    parameters: float32[B, H, W, M], what `PixelCNN` gives for the images.
    images: float32[B, H, W, C] in [0, 1].

  Returns:
    float32[B, H, W, C, 256], normalised: their softmax is their exponential.
  """
  every = jnp.arange(NUM_LEVELS, dtype=images.dtype)
  candidates = jnp.broadcast_to(every, (*images.shape, NUM_LEVELS))
  return log_probabilities(parameters, images * 255, candidates)


def log_likelihood(parameters: jax.Array, images: jax.Array) -> jax.Array:
  """Log-likelihood of whole pictures.

  Minus the sum of softmax cross-entropies of `level_logits`, of which it
  computes only those that count.

  Args:
    parameters: float32[B, H, W, M], what `PixelCNN` gives for the images.
    images: float32[B, H, W, C] in [0, 1]; between two levels the bin moves
      along, so that there is a gradient.

  Returns:
    float32[B], in nats; to the bit independent of the batch, given the
    parameters.
  """
  levels = images * 255
  return norms.total(
    log_probabilities(parameters, levels, levels[..., None])[..., 0]
  )


def bits_per_dim(
  module: PixelCNN,
  params: PyTree,
  images: jax.Array,
  key: jax.Array | None = None,
) -> jax.Array:
  """Minus the log-likelihood of pictures in bits, by pixel and channel.

  Args:
    module: The network.
    params: Its weights.
    images: float32[B, H, W, C] in [0, 1], rounded to levels first; gradients
      pass the rounding as if it were not there.
    key: One key, which turns dropout on; None outside of training.

  Returns:
    float32[B], at least 0; 8 for a uniform distribution.
  """
  rounded = to_float(to_uint8(images))
  images = images + lax.stop_gradient(rounded - images)
  rngs = {} if key is None else {'dropout': key}
  parameters = module.apply(
    {'params': params}, images, key is not None, rngs=rngs
  )
  size = math.prod(images.shape[1:]) * math.log(2)
  # Nothing is mutable, so `apply` gives the output alone.
  return -log_likelihood(cast(jax.Array, parameters), images) / size


def in_raster_order(
  module: PixelCNN,
  params: PyTree,
  levels: jax.Array,
  choose: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
  """Makes pictures pixel by pixel, each from those that were made before.

  A full forward pass for each of the HWC channels would cost HWC times a
  pass. Here the parameters of a pixel serve all its channels, the stream of
  whole rows runs once a row, and every convolution remembers the last rows of
  its input and computes one pixel. So the multiplications of all pixels are
  those of 1 to 3 passes (coarse stages run at every pixel, though their
  result is taken at every second or fourth), in HW small steps. For 50
  pictures of 32x32x3, 32 filters and one block that takes 3.4 CPU-seconds and
  a pass 1.0, so a pass for each channel would take 50 minutes.

  Args:
    module: The network.
    params: Its weights.
    levels: float32[B, H, W, C], what `choose` is told of the pixel that it
      makes, such as the levels of a given picture.
    choose: `(parameters, levels) -> levels`, float32[B, M] (see
      `log_probabilities`) and float32[B, C] to the pixel's float32[B, C] in
      [0, 255].

  Returns:
    float32[B, H, W, C], what was chosen.

  Raises:
    UserError: As `PixelCNN`.

  References:
    Ramachandran et al., Fast Generation for Convolutional Autoregressive
    Models, 2017, https://arxiv.org/abs/1704.06001, section 2.
  """
  module.check_pictures(levels)
  batch, height, width, channels = levels.shape

  def run(method, cache, *arguments):
    variables = {'params': params, **cache}
    return module.apply(variables, *arguments, method=method, mutable=['cache'])

  def empty(method, *arguments):
    shapes = jax.eval_shape(lambda: run(method, {}, *arguments)[1])
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

  start = jnp.zeros((), jnp.int32)
  origin = Place(start, start, width)
  # Outside of the picture all is 0, the channel of ones included.
  no_row = jnp.zeros((batch, 1, width, channels + 1), levels.dtype)
  no_pixel = no_row[:, :, :1]
  empty_down = empty('read_row', no_row, origin)
  maps = jax.eval_shape(lambda: run('read_row', {}, no_row, origin)[0])
  maps = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), maps)
  empty_right = empty('read_pixel', no_pixel, maps, origin)

  def next_row(carry, given):
    down, right, above = carry
    row, row_levels = given
    maps, down = run('read_row', down, above, Place(row, start, width))

    def next_pixel(carry, given):
      right, before = carry
      column, pixel_levels = given
      parameters, right = run(
        'read_pixel', right, before, maps, Place(row, column, width)
      )
      chosen = choose(parameters[:, 0, 0], pixel_levels)
      return (right, _with_ones(chosen)[:, None, None]), chosen

    columns = jnp.arange(width, dtype=jnp.int32)
    (right, _), chosen = lax.scan(
      next_pixel, (right, no_pixel), (columns, row_levels)
    )
    above = _with_ones(chosen.swapaxes(0, 1))[:, None]
    return (down, right, above), chosen

  given = (jnp.arange(height, dtype=jnp.int32), levels.transpose(1, 2, 0, 3))
  _, chosen = lax.scan(next_row, (empty_down, empty_right, no_row), given)
  return chosen.transpose(2, 0, 1, 3)
