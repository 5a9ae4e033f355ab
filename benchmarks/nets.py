"""Nets and pictures of the benchmarks: Flax, and the same net in PyTorch.

A net is defined once, on the layers of jaxadv, trained for a moment on real
pictures and kept in the cache; `torch_twin` carries its weights over.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from jaxadv import losses, models
from jaxadv.attacks import pgd
from jaxadv.classifier import Classifier, from_linen
from jaxadv.data import sources
from jaxadv.errors import UserError
from jaxadv.models.layers import Conv
from jaxadv.norms import linf_ball
from jaxadv.storage import Cache, code_version, read_npz, write_npz
from jaxadv.types import PyTree, picture_keys
from jaxadv.units import to_float

CLASSES = 10
GREY = ('digits', 'mnist')  # sets of which one channel is read
_TRAIN_BATCH = 64
_INNER_STEPS = 7  # of PGD in adversarial training


class SmallCNN(nn.Module):
  """Two strided convolutions and two dense layers.

  Attributes:
    width: Multiplies the channels, 16, 32 and 64.
    num_classes: Number of logits.
  """

  width: float = 1.0
  num_classes: int = CLASSES

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    pad = ((1, 1), (1, 1))  # PyTorch's; that of 'SAME' is not symmetric
    for number, features in enumerate((16, 32), start=1):
      x = Conv(
        int(features * self.width),
        (3, 3),
        strides=2,
        padding=pad,
        name=f'conv{number}',
      )(x)
      x = nn.relu(x)
    x = x.reshape(len(x), -1)
    x = nn.relu(nn.Dense(int(64 * self.width), name='hidden')(x))
    return nn.Dense(self.num_classes, name='logits')(x)


class Pictures(NamedTuple):
  """What a net learns from, and pictures that it has not seen.

  Attributes:
    train_images: uint8[N, H, W, C].
    train_labels: int32[N].
    images: uint8[M, H, W, C], held out.
    labels: int32[M].
    fingerprint: Of the training pictures.
  """

  train_images: np.ndarray
  train_labels: np.ndarray
  images: np.ndarray
  labels: np.ndarray
  fingerprint: str


def load(dataset: str, cache_dir: str | None = None) -> Pictures:
  """Reads a set; one without a split 'test' is divided at random, 3 to 1.

  Args:
    dataset: As `jaxadv.data.sources.load` takes it, of `CLASSES` classes.
    cache_dir: Where digits are prepared.

  Raises:
    UserError: If the set cannot be had or has other than ten classes.
  """
  channels = 1 if dataset in GREY else 3
  names = sources.splits(dataset, cache_dir=cache_dir)

  def read(split, **choice):
    return sources.load(
      dataset, split, channels=channels, cache_dir=cache_dir, **choice
    )

  if 'test' in names:
    train, held_out = read('train'), read('test', seed=0)
  else:
    order = np.random.default_rng(0).permutation(sum(names.values()))
    border = 3 * len(order) // 4
    train = read('all', rows=order[:border])
    held_out = read('all', rows=order[border:])
  if len(train.class_names) != CLASSES:
    raise UserError(
      f'{dataset} has {len(train.class_names)} classes; the benchmark takes '
      f'sets of {CLASSES}, such as digits, mnist or cifar10'
    )
  return Pictures(
    train.images,
    train.labels,
    held_out.images,
    held_out.labels,
    train.fingerprint,
  )


def build(name: str, image_size: int) -> nn.Module:
  """Builds a net from `small_cnn` or `vgg11` with `:WIDTH` if wanted.

  Raises:
    UserError: If there is none of that name, or the width is no number above
      0.
  """
  kind, _, width = name.partition(':')
  try:
    scale = float(width or 1)
  except ValueError:
    scale = 0.0
  if not scale > 0:
    raise UserError(f'the width of {name!r} must be a number above 0')
  if kind == 'small_cnn':
    return SmallCNN(scale)
  if kind in models.vgg.DEPTHS:
    return models.build(
      kind, num_classes=CLASSES, width=scale, image_size=image_size, head='pool'
    )
  raise UserError(
    f'model is {name!r} but must be one of small_cnn, '
    f'{", ".join(models.vgg.DEPTHS)}, with :WIDTH if wanted'
  )


def trained(
  name: str,
  pictures: Pictures,
  *,
  num_steps: int,
  epsilon: float | None = None,
  cache_dir: str | os.PathLike[str] | None = None,
) -> Classifier:
  """Gives a trained net, from the cache if it was trained before.

  Args:
    name: As `build` takes it.
    pictures: What it learns from.
    num_steps: Steps of Adam, 64 pictures each.
    epsilon: Radius of PGD in adversarial training, or None for clean
      pictures.
    cache_dir: Where weights are kept; default `jaxadv` in the user's cache
      folder.
  """
  module = build(name, pictures.images.shape[1])
  folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
  config = {
    'name': name,
    'data': pictures.fingerprint,
    'num_steps': num_steps,
    'epsilon': epsilon,
  }

  def make(entry: Path, work: Path) -> None:
    del work  # Too short to resume.
    variables = _train(module, pictures, num_steps, epsilon)
    write_npz(
      entry / 'weights.npz', **traverse_util.flatten_dict(variables, sep='/')
    )

  entry = Cache(cache_dir or folder / 'jaxadv').get_or_make(
    'benchmark_net', code_version(__name__), config, make
  )
  weights = read_npz(entry / 'weights.npz')
  variables = traverse_util.unflatten_dict(weights, sep='/')
  return from_linen(module, jax.tree.map(jnp.asarray, variables))


def _train(
  module: nn.Module, pictures: Pictures, num_steps: int, epsilon: float | None
) -> PyTree:
  key = jax.random.key(0)
  variables = jax.jit(module.init)(key, to_float(pictures.train_images[:1]))
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adam(optax.cosine_decay_schedule(1e-3, num_steps)),
  )

  @jax.jit
  def step(variables, state, turn, images, labels):
    images = to_float(images)
    if epsilon is not None:
      # The radius grows over the first half; small nets else learn nothing.
      radius = epsilon * jnp.minimum(1, (turn + 1) / (num_steps / 2))
      attack = pgd(linf_ball(radius), radius / 3, _INNER_STEPS)
      keys = picture_keys(
        jax.random.fold_in(key, turn), jnp.arange(len(labels))
      )
      images = attack(
        keys, from_linen(module, variables), images, labels
      ).images

    def loss(variables):
      logits: Any = module.apply(variables, images)
      return losses.cross_entropy(logits, labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(variables), state)
    return optax.apply_updates(variables, updates), state

  state = jax.jit(optimizer.init)(variables)
  rng = np.random.default_rng(0)
  for turn in range(num_steps):
    rows = rng.integers(len(pictures.train_labels), size=_TRAIN_BATCH)
    variables, state = step(
      variables,
      state,
      turn,
      pictures.train_images[rows],
      pictures.train_labels[rows],
    )
  return jax.device_get(variables)


def torch_twin(classifier: Classifier, images: np.ndarray, device: str):
  """Builds the same net in PyTorch, weights frozen.

  Args:
    classifier: A net of `build` with its weights.
    images: float32[B, H, W, C], for the comparison of the logits.
    device: PyTorch's name of a device.

  Returns:
    A `torch.nn.Module` that takes float32[B, C, H, W] in [0, 1].

  Raises:
    UserError: If a logit differs by more than 1e-4.
  """
  import torch

  params = classifier.variables['params']
  parts: list[torch.nn.Module] = []

  def copy(layer, kernel, bias):
    with torch.no_grad():
      layer.weight.copy_(torch.tensor(np.asarray(kernel)))
      layer.bias.copy_(torch.tensor(np.asarray(bias)))
    parts.append(layer)

  def convolution(leaf, stride):
    _, _, inside, outside = leaf['kernel'].shape
    copy(
      torch.nn.Conv2d(inside, outside, 3, stride=stride, padding=1),
      leaf['kernel'].transpose(3, 2, 0, 1),
      leaf['bias'],
    )

  def dense(leaf, maps=None):
    """Appends a dense layer; `maps` is the shape of its input, flattened."""
    kernel = leaf['kernel']
    if maps is not None:  # Flax flattens HWC, PyTorch CHW.
      by_place = kernel.reshape(*maps, -1)
      kernel = by_place.transpose(2, 0, 1, 3).reshape(kernel.shape)
    copy(torch.nn.Linear(*kernel.shape), kernel.T, leaf['bias'])

  if 'conv1' in params:
    for name in ('conv1', 'conv2'):
      convolution(params[name], 2)
      parts.append(torch.nn.ReLU())
    parts.append(torch.nn.Flatten())
    height, width = (-(-side // 4) for side in images.shape[1:3])
    channels = len(params['conv2']['bias'])
    dense(params['hidden'], (height, width, channels))
    parts.append(torch.nn.ReLU())
    dense(params['logits'])
  else:
    blocks = sorted(name for name in params if name.startswith('block'))
    for block in blocks:
      names = sorted(params[block])
      for name in names:
        convolution(params[block][name], 1)
        if name == names[-1] and block != blocks[-1]:
          parts.append(torch.nn.MaxPool2d(2))
        parts.append(torch.nn.ReLU())
    parts += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    dense(params['head']['predictions'])

  class Twin(torch.nn.Module):
    """Hides the parts, of which ART would make another net."""

    def __init__(self):
      super().__init__()
      self.parts = torch.nn.Sequential(*parts)

    def forward(self, images):
      return self.parts(images)

  twin = Twin().requires_grad_(False).eval().to(device)

  # Both frameworks round to TensorFloat-32 on a GPU; compare without.
  with (
    jax.default_matmul_precision('highest'),
    torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
  ):
    ours = np.asarray(jax.jit(lambda net, x: net(x))(classifier, images))
    theirs = twin(to_torch(images, device)).cpu().numpy()
  largest = float(np.abs(ours - theirs).max())
  if not largest <= 1e-4:
    raise UserError(
      f'the logits of the PyTorch twin differ by up to {largest:.1e}, more '
      'than 1e-4: it is another net, so speeds would not compare'
    )
  return twin


def to_torch(images: np.ndarray, device: str):
  """Gives float32[B, C, H, W] on a device of PyTorch."""
  import torch

  return torch.tensor(np.asarray(images).transpose(0, 3, 1, 2).copy()).to(
    device
  )
