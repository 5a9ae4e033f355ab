"""Layers equal lax in value and in derivatives of first and second order."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxadv.models import layers

# height, channels in and out, kernel, strides, padding, dilation, groups
SHAPES = {
  'same': (9, 3, 4, (3, 3), (1, 1), 'SAME', (1, 1), 1),
  'valid': (8, 2, 3, (3, 3), (1, 1), 'VALID', (1, 1), 1),
  'stride 2': (10, 3, 4, (3, 3), (2, 2), 'SAME', (1, 1), 1),
  'below and right': (12, 3, 4, (3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1), 1),
  'uneven': (11, 3, 4, (3, 2), (2, 1), ((0, 1), (2, 0)), (1, 1), 1),
  'negative': (12, 3, 4, (3, 3), (2, 2), ((-1, 2), (3, -2)), (2, 1), 1),
  'dilated': (11, 2, 3, (3, 3), (1, 1), 'SAME', (2, 2), 1),
  'wide padding': (6, 2, 3, (2, 2), (1, 1), ((3, 3), (4, 0)), (1, 1), 1),
  'small map': (4, 3, 5, (3, 3), (1, 1), 'SAME', (1, 1), 1),
  '1x1': (9, 3, 5, (1, 1), (2, 2), 'VALID', (1, 1), 1),
  'grouped': (9, 4, 6, (3, 3), (1, 1), 'SAME', (1, 1), 2),
  'narrow groups': (5, 32, 64, (3, 3), (1, 1), 'SAME', (1, 1), 4),
  'depthwise': (9, 4, 4, (3, 3), (1, 1), 'SAME', (1, 1), 4),
  'depthwise stride 2': (8, 4, 4, (3, 2), (2, 2), ((0, 1), (1, 0)), (1, 1), 4),
  'depthwise dilated': (9, 3, 3, (3, 3), (1, 1), 'SAME', (2, 1), 3),
  'a spare row': (32, 64, 128, (3, 3), (1, 1), 'SAME', (1, 1), 1),
  'depthwise times 2': (6, 3, 6, (3, 3), (2, 2), 'SAME', (1, 1), 3),
}


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def _case(name, batch=2):
  side, inputs, outputs, window, strides, padding, dilation, groups = SHAPES[
    name
  ]
  keys = jax.random.split(jax.random.key(3))
  x = jax.random.normal(keys[0], (batch, side, side + 1, inputs), float)
  kernel = jax.random.normal(
    keys[1], (*window, inputs // groups, outputs), float
  ) / np.sqrt(inputs // groups)
  how = dict(
    rhs_dilation=dilation,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )
  ours, theirs = (
    lambda x, kernel, f=f: f(x, kernel, strides, padding, **how)
    for f in (layers.conv, lax.conv_general_dilated)
  )
  return ours, theirs, x, kernel


def _close(ours, theirs, *arguments):
  left, right = (jax.jit(f)(*arguments) for f in (ours, theirs))
  chex.assert_trees_all_close(left, right, rtol=1e-9, atol=1e-9)


def _derivatives(f, forward=False):
  """Value, gradients, second derivatives in reverse or forward mode."""

  def gradients(x, kernel):
    return jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a))), (0, 1))(x, kernel)

  def again(x, kernel):
    return sum(jnp.sum(jnp.cos(g)) for g in gradients(x, kernel))

  def everything(x, kernel):
    if forward:
      return jax.jvp(gradients, (x, kernel), (jnp.cos(x), jnp.cos(kernel)))
    first, second = gradients(x, kernel), jax.grad(again, (0, 1))(x, kernel)
    return f(x, kernel), first, second

  return everything


@pytest.mark.parametrize('name', SHAPES)
def test_conv_equals_lax_to_second_order(name, monkeypatch):
  monkeypatch.setattr(layers, '_many_devices', lambda: False)
  ours, theirs, x, kernel = _case(name)
  _close(_derivatives(ours), _derivatives(theirs), x, kernel)


@pytest.mark.parametrize('name', ['stride 2', 'negative', 'dilated'])
def test_many_channels_get_their_gradient_from_a_convolution(name, monkeypatch):
  monkeypatch.setattr(layers, '_FEW_CHANNELS', 0)
  ours, theirs, x, kernel = _case(name)
  _close(_derivatives(ours), _derivatives(theirs), x, kernel)


@pytest.mark.parametrize('several', [False, True])
def test_only_one_device_computes_a_spare_row(several, monkeypatch):
  monkeypatch.setattr(layers, '_many_devices', lambda: several)
  x, kernel = jnp.zeros((2, 32, 33, 64)), jnp.zeros((3, 3, 64, 128))
  program = jax.jit(lambda *args: layers.conv(*args)).lower(x, kernel)
  assert ('2x33x33x128' in program.as_text()) != several


@pytest.mark.parametrize('name', ['stride 2', 'depthwise'])
def test_conv_in_forward_mode(name):
  ours, theirs, x, kernel = _case(name)
  _close(_derivatives(ours, True), _derivatives(theirs, True), x, kernel)


@pytest.mark.parametrize('name', ['stride 2', 'depthwise'])
@pytest.mark.parametrize('axes', [(0, None), (None, 0), (0, 0)])
def test_conv_under_vmap(name, axes):
  ours, theirs, x, kernel = _case(name)
  arguments = [
    jnp.stack([value, jnp.sin(value)]) if axis == 0 else value
    for value, axis in zip((x, kernel), axes, strict=True)
  ]

  def both(f):
    def gradients(x, kernel):
      return jax.grad(lambda *a: jnp.sum(f(*a) ** 2), (0, 1))(x, kernel)

    return jax.vmap(lambda x, k: (f(x, k), gradients(x, k)), axes)

  _close(both(ours), both(theirs), *arguments)


@pytest.mark.parametrize('name', ['stride 2', 'depthwise'])
def test_lax_map_over_stacked_kernels(name):
  ours, theirs, x, kernel = _case(name)
  kernels = jnp.stack([kernel, 2 * kernel, jnp.cos(kernel)])

  def over(f):
    gradient = jax.grad(lambda k: jnp.sum(f(x, k) ** 2))
    return lambda kernels: lax.map(gradient, kernels)

  _close(over(ours), over(theirs), kernels)


@pytest.mark.parametrize('name', ['same', 'depthwise'])
def test_sharded_batch(name):
  ours, theirs, x, kernel = _case(name, batch=2 * jax.device_count())
  mesh = Mesh(np.array(jax.devices()), ('data',))
  x = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
  gradients = [
    lambda x, k, f=f: jax.grad(lambda *a: jnp.sum(f(*a) ** 2), (0, 1))(x, k)
    for f in (ours, theirs)
  ]
  _close(*gradients, x, kernel)
  assert jax.jit(gradients[0])(x, kernel)[0].sharding == x.sharding


@pytest.mark.parametrize('name', ['same', 'depthwise', 'stride 2'])
def test_kernel_gradient_in_parts(name, monkeypatch):
  # The way of a single device, on which a batch is summed in parts.
  monkeypatch.setattr(layers, '_many_devices', lambda: False)
  monkeypatch.setattr(layers, '_images_at_once', lambda x, g: 2 - x[0] % 2)
  ours, theirs, x, kernel = _case(name, batch=6)
  _close(_derivatives(ours), _derivatives(theirs), x, kernel)


def test_images_at_once_divides_the_batch(monkeypatch):
  monkeypatch.setattr(layers, '_many_devices', lambda: False)
  for batch in (1, 7, 32, 100, 128):
    share = layers._images_at_once((batch, 34, 34, 16), (batch, 32, 32, 16))
    assert batch % share == 0
  assert layers._images_at_once((128, 34, 34, 16), (128, 32, 32, 16)) == 16


@pytest.mark.parametrize(
  'window, strides, padding',
  [
    ((2, 2), None, 'VALID'),
    ((3, 3), (2, 2), 'SAME'),
    ((3, 2), (1, 2), ((1, 0), (0, 1))),
  ],
)
def test_pooling_equals_linen(window, strides, padding):
  # Rounded, so that most windows hold their maximum more than once.
  x = jnp.round(jax.random.normal(jax.random.key(5), (2, 8, 8, 3), float))
  steps = strides or window

  def derivatives(f):
    loss = lambda x: jnp.sum(f(x) ** 3)
    return lambda x: (
      f(x),
      jax.grad(loss)(x),
      jax.jvp(jax.grad(loss), (x,), (jnp.cos(x),)),
    )

  _close(
    derivatives(lambda x: layers.max_pool(x, window, strides, padding)),
    derivatives(lambda x: nn.max_pool(x, window, steps, padding)),
    x,
  )

  def averages(module):
    return lambda x: [
      module.avg_pool(x, window, steps, padding, count_include_pad=count)
      for count in (True, False)
    ]

  _close(averages(layers), averages(nn), x)


def test_accelerators_use_lax_with_the_same_results(monkeypatch):
  x = jax.random.normal(jax.random.key(6), (2, 8, 8, 4), float)
  kernel = jnp.cos(jnp.arange(9.0 * 4 * 4)).reshape(3, 3, 4, 4)

  def network(x, kernel):
    x = layers.max_pool(layers.conv(x, kernel))
    x = layers.conv(x, kernel[:, :, :1], feature_group_count=4)
    return jnp.sum(layers.avg_pool(x) ** 2)

  def derivative(x, kernel):
    return jax.value_and_grad(network, (0, 1))(x, kernel)

  here = jax.jit(derivative)(x, kernel)
  monkeypatch.setattr(layers, '_on_cpu', lambda: False)
  jaxpr = str(jax.make_jaxpr(lambda *a: derivative(*a))(x, kernel))
  assert 'jaxadv' not in jaxpr
  there = jax.jit(lambda *a: derivative(*a))(x, kernel)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), here, there
  )


def test_linen_conv_has_the_parameters_of_linen():
  x = jax.random.normal(jax.random.key(7), (2, 7, 7, 3), float)
  ours = layers.Conv(5, (3, 3), strides=(2, 2))
  theirs = nn.Conv(5, (3, 3), strides=(2, 2))
  variables = theirs.init(jax.random.key(8), x)
  np.testing.assert_allclose(
    ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-10
  )
