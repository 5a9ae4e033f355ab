"""Convolution and pooling that are fast on every backend.

XLA on CPU has one fast path for convolutions, NHWC/HWIO/NHWC without window
reversal. The gradients that `lax` writes leave it, inside loops by factors of
3 to 300 (JAX issue 12868). Here the gradients are plain forward convolutions
too, and shapes for which no convolution is fast become matrix products or
sums of shifted slices. On GPU and TPU everything is plain `lax`.

All functions take NHWC images and HWIO kernels, and agree with `lax` in value
and in derivatives of any order, in forward and reverse mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Pair = tuple[int, int]
Padding = str | Sequence[tuple[int, int]]

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
_SMALL_SIDE = 4  # outputs up to this side are one matrix product
_SMALL_KERNEL = 7
_FEW_CHANNELS = 8  # inputs up to so many get their gradient from one product
_MERGED = 32  # narrow groups become dense convolutions of so many channels


def _on_cpu() -> bool:
  """Whether the CPU forms are used; asked while tracing."""
  return jax.default_backend() == 'cpu'


def conv(
  x: jax.Array,
  kernel: jax.Array,
  window_strides: Sequence[int] = (1, 1),
  padding: Padding = 'SAME',
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: Any = None,
  feature_group_count: int = 1,
  **others: Any,
) -> jax.Array:
  """Convolves images; stands in for `lax.conv_general_dilated`.

  Args:
    x: float[N, H, W, C].
    kernel: float[kh, kw, C / groups, K], of the dtype of `x`.
    window_strides: Strides in height and width.
    padding: 'SAME', 'VALID' or ((top, bottom), (left, right)), which may be
      negative.
    lhs_dilation: Dilation of the image; one other than (1, 1) goes to `lax`.
    rhs_dilation: Dilation of the kernel in height and width.
    dimension_numbers: Ignored but for other than 2-D images, which go to
      `lax`; there is one layout.
    feature_group_count: Number of groups of channels; C for depthwise.
    **others: Other arguments of `lax.conv_general_dilated`; if one is set the
      call goes to `lax`.

  Returns:
    float[N, H', W', K].
  """
  unusual = (
    x.ndim != 4
    or any(d != 1 for d in lhs_dilation or ())
    or any(value is not None for value in others.values())
  )
  if unusual or not _on_cpu():
    return lax.conv_general_dilated(
      x,
      kernel,
      window_strides,
      padding,
      lhs_dilation=lhs_dilation,
      rhs_dilation=rhs_dilation,
      dimension_numbers=_DIMENSIONS if x.ndim == 4 else dimension_numbers,
      feature_group_count=feature_group_count,
      **others,
    )
  strides = _pair(window_strides)
  dilation = _pair(rhs_dilation or (1, 1))
  pads = _pads(x.shape[1:3], kernel.shape[:2], strides, padding, dilation)
  how = _How(strides, pads, dilation)
  if feature_group_count == 1:
    return _dense(x, kernel, how)
  if kernel.shape[2] == 1:
    return _depthwise(x, kernel, how)
  return _grouped(x, kernel, feature_group_count, how)


def max_pool(
  x: jax.Array,
  window: Sequence[int] = (2, 2),
  strides: Sequence[int] | None = None,
  padding: Padding = 'VALID',
) -> jax.Array:
  """Takes the largest value of every window.

  Of equal values the first in row-major order receives the gradient, as in
  `lax`.

  Args:
    x: float[N, H, W, C].
    window: Height and width of the window.
    strides: Strides in height and width; the window's size if None.
    padding: As in `conv`; filled with -inf.

  Returns:
    float[N, H', W', C].
  """
  size = _pair(window)
  steps = _pair(strides or size)
  pads = _pads(x.shape[1:3], size, steps, padding, (1, 1))
  how = _How(steps, pads, (1, 1))
  if not _on_cpu():
    return _reduce_window(x, -jnp.inf, lax.max, size, how)
  return _max_pool(x, size, how)


def avg_pool(
  x: jax.Array,
  window: Sequence[int] = (2, 2),
  strides: Sequence[int] | None = None,
  padding: Padding = 'VALID',
  *,
  count_include_pad: bool = True,
) -> jax.Array:
  """Averages every window.

  Args:
    x: float[N, H, W, C].
    window: Height and width of the window.
    strides: Strides in height and width; the window's size if None.
    padding: As in `conv`; filled with 0.
    count_include_pad: Whether padding counts as values (Keras: False).

  Returns:
    float[N, H', W', C].
  """
  size = _pair(window)
  steps = _pair(strides or size)
  pads = _pads(x.shape[1:3], size, steps, padding, (1, 1))
  how = _How(steps, pads, (1, 1))

  def total(values: jax.Array) -> jax.Array:
    if _on_cpu():
      ones = jnp.ones((*size, 1, values.shape[-1]), values.dtype)
      return _depthwise(values, ones, how)
    return _reduce_window(values, 0.0, lax.add, size, how)

  if count_include_pad:
    return total(x) / math.prod(size)
  return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


# Part of the key of JAX's caches: what was compiled outside is not used inside.
_softness = jax.make_user_context(default_value=None)


def relu(x: jax.Array) -> jax.Array:
  """Cuts off what is negative; inside `smooth_relu` it is softplus."""
  beta = _softness.value
  return nn.relu(x) if beta is None else nn.softplus(beta * x) / beta


def smooth_relu(beta: float) -> AbstractContextManager[None]:
  """Makes `relu` smooth in what is traced within this context.

  ReLU has no second derivative, so what depends on the gradient of a network
  seems not to depend on the picture. Softplus has one and is near:

    with smooth_relu(10.0):
      maps = jax.grad(loss)(images)

  Args:
    beta: Sharpness, above 0: relu(x) becomes log(1 + exp(beta x)) / beta,
      which is at most log(2) / beta larger.

  Returns:
    A context. Networks that take their ReLU from elsewhere do not change.
  """
  return _softness(beta)


def _lax_conv() -> Any:
  return conv


Conv = partial(nn.Conv, conv_general_dilated_cls=_lax_conv)
"""`flax.linen.Conv` on `conv`; same arguments, same parameters."""


def _pair(values: Sequence[int]) -> Pair:
  height, width = values
  return int(height), int(width)


def _pads(
  sides: Sequence[int],
  window: Sequence[int],
  strides: Pair,
  padding: Padding,
  dilation: Pair,
) -> tuple[Pair, Pair]:
  """Spells padding out as ((top, bottom), (left, right))."""
  if isinstance(padding, str):
    spans = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    padding = lax.padtype_to_pads(sides, spans, strides, padding)
  vertical, horizontal = (_pair(pad) for pad in padding)
  return vertical, horizontal


def _reduce_window(x, start, operation, size, how):
  return lax.reduce_window(
    x,
    np.asarray(start, x.dtype),  # a constant, or lax finds no gradient
    operation,
    (1, *size, 1),
    (1, *how.strides, 1),
    ((0, 0), *how.pads, (0, 0)),
  )


# --- bilinear primitives with gradients of our own ---------------------------


class _How(NamedTuple):
  """What is static in a convolution."""

  strides: Pair
  pads: tuple[Pair, ...]
  dilation: Pair
  input_dilation: Pair = (1, 1)

  def sides(self, x, kernel) -> tuple[int, ...]:
    """Gives the height and width of the output."""
    return tuple(
      max(((side - 1) * hole + 1 + sum(pad) - (k - 1) * d - 1) // s + 1, 0)
      for side, k, s, pad, d, hole in zip(
        x.shape[1:3], kernel.shape[:2], *self, strict=True
      )
    )

  def shape(self, x, kernel) -> ShapedArray:
    """Gives shape and dtype of the output."""
    sides = self.sides(x, kernel)
    return ShapedArray((x.shape[0], *sides, kernel.shape[-1]), x.dtype)


def _primitive(name, plain, input_gradient, kernel_gradient, batched):
  """Makes `plain(x, kernel, how)` a primitive with the gradients given.

  Unlike a `custom_vjp` it keeps forward mode and derivatives of any order.
  """
  primitive = Primitive(name)
  primitive.def_impl(jax.jit(plain, static_argnames='how'))
  primitive.def_abstract_eval(lambda x, kernel, how: how.shape(x, kernel))
  ad.defbilinear(primitive, input_gradient, kernel_gradient)
  batching.primitive_batchers[primitive] = batched
  mlir.register_lowering(
    primitive, mlir.lower_fun(plain, multiple_results=False)
  )
  return primitive


def _bilinear(x, kernel, how):
  """Dense convolution by the primitive whose gradients are convolutions."""
  cuts, left = [], []
  for side, pad, hole in zip(
    x.shape[1:3], how.pads, how.input_dilation, strict=True
  ):
    # Negative padding leaves the fast path: drop the pixels that lie wholly
    # outside, and pad what of the dilation's zeros before the next one stays.
    drop = [-(min(p, 0) // hole) for p in pad]
    cuts.append(slice(drop[0], side - drop[1]))
    left.append(tuple(p + n * hole for p, n in zip(pad, drop, strict=True)))
  inside = x[:, cuts[0], cuts[1]]
  return _dense_p.bind(inside, kernel, how=how._replace(pads=tuple(left)))


def _dense_plain(x, kernel, how):
  spare = int(_spare_row_pays(x, kernel, how))
  (top, bottom), horizontal = how.pads
  out = lax.conv_general_dilated(
    x,
    kernel,
    how.strides,
    ((top, bottom + spare), horizontal),
    lhs_dilation=how.input_dilation,
    rhs_dilation=how.dilation,
    dimension_numbers=_DIMENSIONS,
  )
  return out[:, : out.shape[1] - spare]


def _spare_row_pays(x, kernel, how) -> bool:
  """Whether to compute one row more than is wanted.

  XLA gives convolutions to a library that works on small kernels with a
  single core (jaxlib 0.10), but not if the output is higher than the input.
  Then it takes another one, which must not run twice at the same time: part of
  the sums is lost (jaxlib 0.10 and 0.12). One device computes in order; several
  do not, and a core each is what they have anyway.
  """
  if _many_devices():
    return False
  sides = how.sides(x, kernel)
  plain = how.strides == how.input_dilation == (1, 1)
  multiplications = x.shape[0] * math.prod(sides) * kernel.size
  return (
    plain
    and sides[0] == x.shape[1]
    and kernel.size < 2**17
    and multiplications > 2**27
  )


def _dense_input_gradient(cotangent, x, kernel, how):
  """A convolution of the cotangent with the kernel turned around."""
  if x.aval.shape[-1] <= _FEW_CHANNELS and how.input_dilation == (1, 1):
    # Its few output channels would leave most of a core idle: one product
    # instead, added up where the patches were cut out.
    columns = kernel.reshape(1, 1, -1, kernel.shape[-1]).swapaxes(2, 3)
    cut = partial(_patches, window=kernel.shape[:2], how=how)
    shape = jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype)
    return jax.linear_transpose(cut, shape)(_product(cotangent, columns))[0]
  pads = []
  for side, out, k, s, pad, d, hole in zip(
    x.aval.shape[1:3],
    cotangent.shape[1:3],
    kernel.shape[:2],
    *how,
    strict=True,
  ):
    span = (k - 1) * d
    low = span - pad[0]
    pads.append((low, (side - 1) * hole + span - (out - 1) * s - low))
  return _bilinear(
    cotangent,
    jnp.flip(kernel, (0, 1)).swapaxes(2, 3),
    _How(how.input_dilation, tuple(pads), how.dilation, how.strides),
  )


def _dense_kernel_gradient(cotangent, x, kernel, how):
  """A convolution of the images with the cotangent; batch and channels swap."""
  pads = []
  for side, out, k, s, pad, d, hole in zip(
    x.shape[1:3],
    cotangent.shape[1:3],
    kernel.aval.shape[:2],
    *how,
    strict=True,
  ):
    high = (k - 1) * d + (out - 1) * s - (side - 1) * hole - pad[0]
    pads.append((pad[0], high))
  turned = _How(how.dilation, tuple(pads), how.strides, how.input_dilation)

  def part(pair):
    images, cotangents = pair
    gradient = _bilinear(
      images.transpose(3, 1, 2, 0), cotangents.transpose(1, 2, 0, 3), turned
    )
    return gradient.transpose(1, 2, 0, 3)

  share = _images_at_once(x.shape, cotangent.shape)
  if share == x.shape[0]:
    return part((x, cotangent))
  parts = [v.reshape(-1, share, *v.shape[1:]) for v in (x, cotangent)]
  return lax.map(part, tuple(parts)).sum(0)


def _images_at_once(x_shape, cotangent_shape) -> int:
  """Gives the part of a batch that one kernel gradient should sum over.

  The sum runs over pixels and images alike; past a few thousand terms it
  falls out of the cache and costs 2 to 4 times as much.
  """
  if _many_devices():
    return x_shape[0]
  terms = min(max(2**18 // x_shape[-1], 2**12), 2**14)
  most = max(1, terms // math.prod(cotangent_shape[1:3]))
  share = math.gcd(x_shape[0], 2 ** (most.bit_length() - 1))
  return share if 4 * share > most else x_shape[0]


def _many_devices() -> bool:
  """Whether a batch may be sharded; a loop over it would then gather it."""
  return jax.device_count() > 1


def _dense_batched(arguments, axes, how):
  """Folds one batched argument into batch or channels; loops over two."""
  x, kernel = arguments
  x_axis, kernel_axis = axes
  if kernel_axis is None:
    return _batched_images(_dense_p, x, x_axis, kernel, how)
  if x_axis is None:
    kernel = jnp.moveaxis(kernel, kernel_axis, -2)
    folded = kernel.reshape(*kernel.shape[:3], -1)
    out = _dense_p.bind(x, folded, how=how)
    return out.reshape(*out.shape[:-1], *kernel.shape[3:]), 3
  # A grouped convolution would do, five times slower.
  pairs = jnp.moveaxis(x, x_axis, 0), jnp.moveaxis(kernel, kernel_axis, 0)
  return lax.map(lambda pair: _dense_p.bind(*pair, how=how), pairs), 0


def _batched_images(primitive, x, axis, kernel, how):
  x = jnp.moveaxis(x, axis, 0)
  out = primitive.bind(x.reshape(-1, *x.shape[2:]), kernel, how=how)
  return out.reshape(*x.shape[:2], *out.shape[1:]), 0


def _depthwise_plain(x, kernel, how):
  """The sum, stored: consumers that shift it would each compute it anew."""
  return _stored(_shifted_sum(x, kernel, how))


def _stored(x):
  """Keeps XLA from fusing what made `x` into its many consumers.

  It drops `lax.optimization_barrier` on CPU; a loop is a wall, be it one of
  no turns as here, if that cannot be seen before it runs.
  """
  if not x.size:
    return x
  never = jnp.sign(x[(0,) * x.ndim]) > 1
  return lax.while_loop(
    lambda carry: carry[0], lambda carry: (~carry[0], -carry[1]), (never, x)
  )[1]


def _shifted_sum(x, kernel, how):
  """A sum of shifted images, each times one weight a channel."""
  taps = _taps(x, kernel.shape[:2], how)
  return sum(part * kernel[row, column, 0] for row, column, part in taps)


def _depthwise_input_gradient(cotangent, x, kernel, how):
  shape = jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype)
  (gradient,) = jax.linear_transpose(
    lambda x: _shifted_sum(x, kernel, how), shape
  )(_stored_p.bind(cotangent))
  return gradient


def _depthwise_kernel_gradient(cotangent, x, kernel, how):
  """Sums over images first: the other way round XLA is 5 to 13 times slower."""
  window = kernel.aval.shape[:2]

  def products(x, cotangent):
    return [part * cotangent for *_, part in _taps(x, window, how)]

  def add(sums, pair):
    image, change = pair
    terms = products(image[None], change[None])
    return [s + term[0] for s, term in zip(sums, terms, strict=True)], None

  if _many_devices():
    sums = [term.sum((0, 1, 2)) for term in products(x, cotangent)]
  else:
    zero = jnp.zeros(cotangent.shape[1:], cotangent.dtype)
    maps, _ = lax.scan(add, [zero] * math.prod(window), (x, cotangent))
    sums = [each.sum((0, 1)) for each in maps]
  return jnp.stack(sums).reshape(kernel.aval.shape)


def _depthwise_batched(arguments, axes, how):
  """Folds batched images into the batch, batched kernels into channels."""
  x, kernel = arguments
  x_axis, kernel_axis = axes
  if kernel_axis is None:
    return _batched_images(_depthwise_p, x, x_axis, kernel, how)
  kernel = jnp.moveaxis(kernel, kernel_axis, -2)
  if x_axis is None:
    x = jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], *kernel.shape[-2:]))
  else:
    x = jnp.moveaxis(x, x_axis, -2)
  out = _depthwise_p.bind(
    x.reshape(*x.shape[:-2], -1),
    kernel.reshape(*kernel.shape[:-2], -1),
    how=how,
  )
  return out.reshape(*out.shape[:-1], *kernel.shape[-2:]), out.ndim - 1


_dense_p = _primitive(
  'jaxadv_conv',
  _dense_plain,
  _dense_input_gradient,
  _dense_kernel_gradient,
  _dense_batched,
)
_stored_p = Primitive('jaxadv_stored')
_stored_p.def_impl(lambda x: x)
_stored_p.def_abstract_eval(lambda x: ShapedArray(x.shape, x.dtype))
ad.deflinear(_stored_p, lambda cotangent: [_stored_p.bind(cotangent)])
batching.defvectorized(_stored_p)
mlir.register_lowering(
  _stored_p, mlir.lower_fun(_stored, multiple_results=False)
)
_depthwise_p = _primitive(
  'jaxadv_depthwise_conv',
  _depthwise_plain,
  _depthwise_input_gradient,
  _depthwise_kernel_gradient,
  _depthwise_batched,
)


# --- shapes for which something else is faster on CPU -----------------------


def _dense(x, kernel, how):
  """Picks the form of an ungrouped convolution."""
  window = kernel.shape[:2]
  padded = any(pad != (0, 0) for pad in how.pads)
  if window == (1, 1) and not padded:
    return _product(x[:, :: how.strides[0], :: how.strides[1]], kernel)
  if max(how.sides(x, kernel)) <= _SMALL_SIDE and max(window) <= _SMALL_KERNEL:
    # One matrix product over all kernel positions.
    return _product(_patches(x, window, how), kernel)
  return _bilinear(x, kernel, how)


def _product(x, kernel):
  """Multiplies channels by the kernel as one matrix.

  Flat, for the kernel gradient of a product over three axes is up to ten
  times slower.
  """
  matrix = kernel.reshape(-1, kernel.shape[-1])
  flat = x.reshape(-1, x.shape[-1]) @ matrix
  return flat.reshape(*x.shape[:-1], matrix.shape[-1])


def _grouped(x, kernel, groups, how):
  """Convolves groups of channels, several at once if they are narrow.

  Their kernels then stand on the diagonal of one that is 0 elsewhere: the
  multiplications by 0 cost less than many thin convolutions.
  """
  *window, inputs, outputs = kernel.shape
  narrow = max(1, _MERGED // max(inputs, outputs // groups))
  merged = math.gcd(groups, narrow)
  blocks = kernel.reshape(*window, inputs, groups // merged, merged, -1)
  diagonal = jnp.einsum(
    'hwigmo,nm->hwnigmo', blocks, jnp.eye(merged, dtype=kernel.dtype)
  )
  diagonal = diagonal.reshape(*window, merged * inputs, outputs)
  parts = [
    _dense(part, weights, how)
    for part, weights in zip(
      jnp.split(x, groups // merged, axis=-1),
      jnp.split(diagonal, groups // merged, axis=-1),
      strict=True,
    )
  ]
  return jnp.concatenate(parts, axis=-1)


def _depthwise(x, kernel, how):
  """Convolves every channel with its own kernels."""
  multiplier = kernel.shape[-1] // x.shape[-1]
  if multiplier > 1:
    x = jnp.repeat(x, multiplier, axis=-1)
  return _depthwise_p.bind(x, kernel, how=how)


def _patches(x, window, how):
  """Gives what all kernel positions meet, [N, H', W', kh * kw * C]."""
  return jnp.concatenate([part for *_, part in _taps(x, window, how)], -1)


def _taps(x, window, how, fill=0.0):
  """Gives, for every kernel position in row-major order, what it meets.

  Yields `(row, column, float[N, H', W', C])`.
  """
  x = lax.pad(
    x,
    jnp.asarray(fill, x.dtype),
    ((0, 0, 0), *((*pad, 0) for pad in how.pads), (0, 0, 0)),
  )
  ends = [
    (side - (k - 1) * d - 1) // s * s + 1
    for side, k, s, d in zip(
      x.shape[1:3], window, how.strides, how.dilation, strict=True
    )
  ]
  for row in range(window[0]):
    for column in range(window[1]):
      top, left = row * how.dilation[0], column * how.dilation[1]
      part = lax.slice(
        x,
        (0, top, left, 0),
        (x.shape[0], top + ends[0], left + ends[1], x.shape[3]),
        (1, *how.strides, 1),
      )
      yield row, column, part


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _max_pool(x, size, how):
  return _reduce_window(x, -jnp.inf, lax.max, size, how)


@_max_pool.defjvp
def _max_pool_jvp(size, how, primals, tangents):
  (x,), (dx,) = primals, tangents
  largest = _max_pool(x, size, how)
  taken = jnp.zeros(largest.shape, bool)
  tangent = jnp.zeros_like(largest)
  values = _taps(x, size, how, fill=-jnp.inf)
  for (*_, value), (*_, change) in zip(
    values, _taps(dx, size, how), strict=True
  ):
    first = (value == largest) & ~taken
    taken |= first
    tangent += jnp.where(first, change, 0)
  return largest, tangent
