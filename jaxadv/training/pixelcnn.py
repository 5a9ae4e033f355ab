"""Training of PixelCNN++ as a density of clean pictures."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.data.batching import map_batches
from jaxadv.errors import UserError
from jaxadv.inputs import as_uint8
from jaxadv.models.pixelcnn import PixelCNN, bits_per_dim, init_pixelcnn
from jaxadv.training.loop import History, fit
from jaxadv.training.state import TrainConfig
from jaxadv.training.tasks import Task, minimise
from jaxadv.types import Batch, PyTree
from jaxadv.units import to_float

AVERAGE = 0.9995


def decay(step: jax.Array) -> jax.Array:
  """Gives the schedule of PixelCNN++, times 0.999995 a step.

  `optax.exponential_decay` takes a power of a float32, which is off by 1e-3
  after many steps.

  Args:
    step: int32[], steps done.

  Returns:
    float32[], a multiple of the learning rate.
  """
  return jnp.exp(step * np.float32(math.log(0.999995)))


RECIPE = TrainConfig(
  num_epochs=50,
  batch_size=64,
  learning_rate=1e-3,
  optimizer='adam:b1=0.95:b2=0.9995',
  schedule=decay,
)
"""Adam as in the code of PixelCNN++ and of PixelDefend, which the papers do not
give; the batch and the number of epochs are ours."""


@functools.cache
def pixelcnn_task(module: PixelCNN) -> Task:
  """Makes the task of modelling pictures; the loss is in bits per dimension.

  The running average of the weights, with which `measure` works, is kept as
  the running statistics: `batch_stats['average']`, as it was before the last
  step. Early on it forgets faster, min(0.9995, (1 + n) / (10 + n)) after n
  steps, so that the initial weights do not linger in a short training.

  Args:
    module: The network.

  Returns:
    A `Task` for data with 'images', uint8[N, H, W, C]. One and the same for
    equal networks.

  References:
    Salimans et al., PixelCNN++, 2017, https://arxiv.org/abs/1701.05517, and
    its code; the faster start is that of TensorFlow's moving average.
  """

  def init(key, data, member):
    del data, member
    params = init_pixelcnn(key, module)['params']
    count = jnp.zeros((), jnp.float32)
    return {
      'params': params,
      'batch_stats': {'average': params, 'count': count},
    }

  def gather(data, indices, member, key):
    del member, key
    return to_float(data['images'][indices])

  def loss(params, batch_stats, examples, mask, key):
    del mask
    count = batch_stats['count']
    keep = jnp.minimum(AVERAGE, (1 + count) / (10 + count))
    average = jax.tree.map(
      lambda old, new: keep * old + (1 - keep) * new,
      batch_stats['average'],
      jax.lax.stop_gradient(params),
    )
    losses = bits_per_dim(module, params, examples, key)
    return losses, {'average': average, 'count': count + 1}

  def measure(params, batch_stats, examples):
    del params
    return {'loss': bits_per_dim(module, batch_stats['average'], examples)}

  return Task(init, gather, minimise(loss), measure)


class FittedPixelCNN(NamedTuple):
  """A trained density.

  Attributes:
    params: The averaged weights.
    history: 'train_loss' and 'valid_loss', float32[epochs], in bits per
      dimension, and 'learning_rate'.
  """

  params: PyTree
  history: History


def fit_pixelcnn(
  key: jax.Array,
  module: PixelCNN,
  images: np.ndarray,
  valid: np.ndarray | None = None,
  config: TrainConfig = RECIPE,
  *,
  mesh: jax.sharding.Mesh | None = None,
  checkpoint_dir: str | os.PathLike[str] | None = None,
  **options: Any,
) -> FittedPixelCNN:
  """Trains a PixelCNN++ on clean pictures.

  Args:
    key: One key.
    module: The network.
    images: [N, H, W, C], uint8, or floating in [0, 1], which is rounded; H and
      W divisible by 4.
    valid: [M, H, W, C], likewise, measured after every epoch, or None. Nothing
      is selected by it, so test pictures may stand here.
    config: Epochs, batch size, optimizer and schedule.
    mesh: Splits batches over its devices.
    checkpoint_dir: Folder to resume from after an interruption.
    **options: As of `jaxadv.training.fit` (progress, ...).

  Returns:
    The averaged weights and the history.

  Raises:
    UserError: If the pictures do not suit the network, or a side of the
      training is empty.
    DataError: If the loss is not finite or memory does not suffice.
  """
  rows = np.arange(len(images))
  images = as_uint8(images)
  pictures, valid_rows = images, None
  if valid is not None and len(valid):
    pictures = np.concatenate([images, as_uint8(valid, 'valid')])
    valid_rows = np.arange(len(images), len(pictures))
  result = fit(
    key,
    pixelcnn_task(module),
    {'images': pictures},
    rows,
    valid_rows,
    config,
    mesh=mesh,
    checkpoint_dir=checkpoint_dir,
    **options,
  )
  average = result.state.batch_stats['average']
  return FittedPixelCNN(average, result.history)


def clean_pictures(batches: Iterable[Batch]) -> np.ndarray:
  """Collects the clean pictures of batches, as 8 bit.

  Args:
    batches: Batches with images uint8 or floating in [0, 1]; rows that are
      padding or of a kind other than 0 are left out.

  Returns:
    uint8[N, H, W, C].

  Raises:
    UserError: If there is none.
  """
  found = [
    as_uint8(batch.images)[
      np.asarray(batch.mask) & (np.asarray(batch.kind) == 0)
    ]
    for batch in batches
  ]
  if not sum(map(len, found)):
    raise UserError(
      'no clean pictures among those given to a density, which learns from '
      'clean ones only; give it some of kind 0'
    )
  return np.concatenate(found)


@functools.partial(jax.jit, static_argnames='module')
def _bits(module, params, images):
  return bits_per_dim(module, params, to_float(images))


def measure_bits(
  module: PixelCNN, params: PyTree, images: np.ndarray, batch_size: int = 64
) -> np.ndarray:
  """Computes bits per dimension of a whole set; one compilation.

  Args:
    module: The network.
    params: Its weights.
    images: [N, H, W, C], uint8, or floating in [0, 1], which is rounded.
    batch_size: Pictures at a time.

  Returns:
    float32[N], of which the mean is what papers report.
  """
  bits = functools.partial(_bits, module, params)
  return map_batches(bits, as_uint8(images), batch_size=batch_size)
