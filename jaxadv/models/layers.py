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
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Pair = tuple[int, int]
Padding = str | Sequence[tuple[int, int]]

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
_SMALL_SIDE = 4  # outputs up to this side are one matrix product
_SMALL_KERNEL = 7


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
  if feature_group_count == 1:
    return _dense(x, kernel, strides, pads, dilation)
  if kernel.shape[2] == 1:
    return _depthwise(x, kernel, strides, pads, dilation)
  return jnp.concatenate(
    [
      _dense(part, weights, strides, pads, dilation)
      for part, weights in zip(
        jnp.split(x, feature_group_count, axis=-1),
        jnp.split(kernel, feature_group_count, axis=-1),
        strict=True,
      )
    ],
    axis=-1,
  )


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
  if not _on_cpu():
    return _reduce_window(x, -jnp.inf, lax.max, size, steps, pads)
  return _max_pool(x, size, steps, pads)


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

  def total(values: jax.Array) -> jax.Array:
    if _on_cpu():
      ones = jnp.ones((*size, 1, values.shape[-1]), values.dtype)
      return _depthwise(values, ones, steps, pads, (1, 1))
    return _reduce_window(values, 0.0, lax.add, size, steps, pads)

  if count_include_pad:
    return total(x) / math.prod(size)
  return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


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


def _output_side(side, window, stride, pad, dilation, input_dilation=1):
  padded = (side - 1) * input_dilation + 1 + sum(pad)
  return max((padded - (window - 1) * dilation - 1) // stride + 1, 0)


def _output_sides(sides, window, strides, pads, dilation, input_dilation):
  return tuple(
    map(_output_side, sides, window, strides, pads, dilation, input_dilation)
  )


def _reduce_window(x, start, operation, size, strides, pads):
  return lax.reduce_window(
    x,
    jnp.asarray(start, x.dtype),
    operation,
    (1, *size, 1),
    (1, *strides, 1),
    ((0, 0), *pads, (0, 0)),
  )


# --- the bilinear convolution ----------------------------------------------

_conv_p = Primitive('jaxadv_conv')


def _bilinear(x, kernel, strides, pads, input_dilation, dilation):
  """Dense convolution by the primitive whose gradients are convolutions."""
  cuts, left = [], []
  for side, pad, step in zip(x.shape[1:3], pads, input_dilation, strict=True):
    # Negative padding leaves the fast path: drop the pixels that lie wholly
    # outside, and pad what of the dilation's zeros before the next one stays.
    drop = [-(min(p, 0) // step) for p in pad]
    cuts.append(slice(drop[0], side - drop[1]))
    left.append(tuple(p + n * step for p, n in zip(pad, drop, strict=True)))
  return _conv_p.bind(
    x[:, cuts[0], cuts[1]],
    kernel,
    strides=strides,
    pads=tuple(left),
    input_dilation=input_dilation,
    dilation=dilation,
  )


def _conv_plain(x, kernel, *, strides, pads, input_dilation, dilation):
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    pads,
    lhs_dilation=input_dilation,
    rhs_dilation=dilation,
    dimension_numbers=_DIMENSIONS,
  )


def _conv_shape(x, kernel, *, strides, pads, input_dilation, dilation):
  sides = _output_sides(
    x.shape[1:3], kernel.shape[:2], strides, pads, dilation, input_dilation
  )
  return ShapedArray((x.shape[0], *sides, kernel.shape[-1]), x.dtype)


def _input_gradient(
  cotangent, x, kernel, *, strides, pads, input_dilation, dilation
):
  """A convolution of the cotangent with the kernel turned around."""
  full = []
  for side, out, k, s, pad, hole, d in zip(
    x.aval.shape[1:3],
    cotangent.shape[1:3],
    kernel.shape[:2],
    strides,
    pads,
    input_dilation,
    dilation,
    strict=True,
  ):
    span = (k - 1) * d
    low = span - pad[0]
    full.append((low, (side - 1) * hole + span - (out - 1) * s - low))
  return _bilinear(
    cotangent,
    jnp.flip(kernel, (0, 1)).swapaxes(2, 3),
    input_dilation,
    tuple(full),
    strides,
    dilation,
  )


def _kernel_gradient(
  cotangent, x, kernel, *, strides, pads, input_dilation, dilation
):
  """A convolution of the images with the cotangent; batch and channels swap."""
  full = []
  for side, out, k, s, pad, hole, d in zip(
    x.shape[1:3],
    cotangent.shape[1:3],
    kernel.aval.shape[:2],
    strides,
    pads,
    input_dilation,
    dilation,
    strict=True,
  ):
    high = (k - 1) * d + (out - 1) * s - (side - 1) * hole - pad[0]
    full.append((pad[0], high))
  gradient = _bilinear(
    x.transpose(3, 1, 2, 0),
    cotangent.transpose(1, 2, 0, 3),
    dilation,
    tuple(full),
    input_dilation,
    strides,
  )
  return gradient.transpose(1, 2, 0, 3)


def _conv_batched(arguments, axes, **how):
  """Folds one batched argument into batch or channels; loops over two."""
  x, kernel = arguments
  x_axis, kernel_axis = axes
  if kernel_axis is None:
    x = jnp.moveaxis(x, x_axis, 0)
    folded = x.reshape(-1, *x.shape[2:])
    out = _conv_p.bind(folded, kernel, **how)
    return out.reshape(*x.shape[:2], *out.shape[1:]), 0
  if x_axis is None:
    kernel = jnp.moveaxis(kernel, kernel_axis, -2)
    folded = kernel.reshape(*kernel.shape[:3], -1)
    out = _conv_p.bind(x, folded, **how)
    return out.reshape(*out.shape[:-1], *kernel.shape[3:]), 3
  # A grouped convolution would do, five times slower.
  pairs = jnp.moveaxis(x, x_axis, 0), jnp.moveaxis(kernel, kernel_axis, 0)
  return lax.map(lambda pair: _conv_p.bind(*pair, **how), pairs), 0


_conv_p.def_impl(
  jax.jit(
    _conv_plain,
    static_argnames=('strides', 'pads', 'input_dilation', 'dilation'),
  )
)
_conv_p.def_abstract_eval(_conv_shape)
ad.defbilinear(_conv_p, _input_gradient, _kernel_gradient)
batching.primitive_batchers[_conv_p] = _conv_batched
mlir.register_lowering(
  _conv_p, mlir.lower_fun(_conv_plain, multiple_results=False)
)


# --- shapes for which something else is faster on CPU -----------------------


def _dense(x, kernel, strides, pads, dilation):
  """Picks the form of an ungrouped convolution."""
  window = kernel.shape[:2]
  padded = any(pad != (0, 0) for pad in pads)
  if window == (1, 1) and not padded:
    return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]
  sides = _output_sides(x.shape[1:3], window, strides, pads, dilation, (1, 1))
  if max(sides) <= _SMALL_SIDE and max(window) <= _SMALL_KERNEL:
    return _as_product(x, kernel, strides, pads, dilation)
  return _bilinear(x, kernel, strides, pads, (1, 1), dilation)


def _taps(x, window, strides, pads, dilation, fill=0.0):
  """Gives, for every kernel position in row-major order, what it meets.

  Yields `(row, column, float[N, H', W', C])`.
  """
  sides = _output_sides(x.shape[1:3], window, strides, pads, dilation, (1, 1))
  if any(pad != (0, 0) for pad in pads):
    config = ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0))
    x = lax.pad(x, jnp.asarray(fill, x.dtype), config)
  for row in range(window[0]):
    for column in range(window[1]):
      start = (row * dilation[0], column * dilation[1])
      stop = [
        first + (side - 1) * stride + 1
        for first, side, stride in zip(start, sides, strides, strict=True)
      ]
      yield (
        row,
        column,
        lax.slice(
          x,
          (0, *start, 0),
          (x.shape[0], *stop, x.shape[3]),
          (1, *strides, 1),
        ),
      )


def _as_product(x, kernel, strides, pads, dilation):
  """One matrix product over all kernel positions; for small outputs."""
  patches = jnp.concatenate(
    [
      part for _, _, part in _taps(x, kernel.shape[:2], strides, pads, dilation)
    ],
    axis=-1,
  )
  return patches @ kernel.reshape(-1, kernel.shape[-1])


def _depthwise(x, kernel, strides, pads, dilation):
  """A sum of shifted images, each times one weight a channel."""
  multiplier = kernel.shape[-1] // x.shape[-1]
  if multiplier > 1:
    x = jnp.repeat(x, multiplier, axis=-1)
  return sum(
    part * kernel[row, column, 0]
    for row, column, part in _taps(x, kernel.shape[:2], strides, pads, dilation)
  )


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, size, strides, pads):
  return _reduce_window(x, -jnp.inf, lax.max, size, strides, pads)


@_max_pool.defjvp
def _max_pool_jvp(size, strides, pads, primals, tangents):
  (x,), (dx,) = primals, tangents
  largest = _max_pool(x, size, strides, pads)
  taken = jnp.zeros(largest.shape, bool)
  tangent = jnp.zeros_like(largest)
  moved = _taps(dx, size, strides, pads, (1, 1))
  held = _taps(x, size, strides, pads, (1, 1), fill=-jnp.inf)
  for (_, _, value), (_, _, change) in zip(held, moved, strict=True):
    first = (value == largest) & ~taken
    taken |= first
    tangent += jnp.where(first, change, 0)
  return largest, tangent
