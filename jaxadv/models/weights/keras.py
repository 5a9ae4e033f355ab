"""Weights by the names that Keras gives them: .npz, .h5 or a `keras.Model`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import h5py
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxadv.errors import DataError, UserError
from jaxadv.models.weights.native import check_names
from jaxadv.storage import read_npz
from jaxadv.types import PyTree

_NORMALISATION = {
  'scale': 'gamma',
  'bias': 'beta',
  'mean': 'moving_mean',
  'var': 'moving_variance',
}
# Spellings in files of Keras 1, whose running_std is a variance.
_OLD = {
  'W': 'kernel',
  'b': 'bias',
  'running_mean': 'moving_mean',
  'running_std': 'moving_variance',
}
# Layers without a name of their own, as Keras 1 and later ones call them.
_AUTOMATIC = {
  'conv2d': r'conv(?:olution)?2d(?:_(\d+))?',
  'batch_normalization': r'batch_?normalization(?:_(\d+))?',
}
# What h5py raises for a file that is broken or holds something else.
_BROKEN_H5 = (
  OSError,
  KeyError,
  ValueError,
  TypeError,
  AttributeError,
  RuntimeError,
)
# The layer of logits in the published files of ResNet and DenseNet, which
# Keras loads by position.
_OLD_LAYERS = {'probs': 'predictions', 'fc1000': 'predictions'}


def load_npz(
  path: str | os.PathLike[str], module: nn.Module, template: PyTree
) -> PyTree:
  """Reads weights from an .npz keyed by Keras names, such as `conv1/kernel`.

  Args:
    path: The file.
    module: The network, for errors.
    template: Its variables, or their `jax.eval_shape`.

  Returns:
    Variables in the structure of the template.

  Raises:
    DataError: If the file is absent or broken.
    UserError: If names or shapes differ from the template's.
  """
  return from_arrays(read_npz(path), module, template, source=os.fspath(path))


def load_h5(
  path: str | os.PathLike[str], module: nn.Module, template: PyTree
) -> PyTree:
  """Reads weights from an .h5 file, as `keras.applications` downloads them.

  Args:
    path: A file of `Model.save_weights` of Keras 2 or of `Model.save`; the
      `.weights.h5` of Keras 3 do not hold the names of layers.
    module: The network, for errors.
    template: Its variables, or their `jax.eval_shape`.

  Returns:
    Variables in the structure of the template.

  Raises:
    DataError: If the file is absent or broken, or of another kind.
    UserError: If names or shapes differ from the template's.
  """
  source = os.fspath(path)
  return from_arrays(read_h5(source), module, template, source=source)


def from_model(model: Any, module: nn.Module, template: PyTree) -> PyTree:
  """Takes the weights of a `keras.Model` of the same network.

  Args:
    model: Its layers must be called as ours; those of `keras.applications`
      are.
    module: The network, for errors.
    template: Its variables, or their `jax.eval_shape`.

  Returns:
    Variables in the structure of the template.

  Raises:
    UserError: If names or shapes differ from the template's.
  """
  arrays = {weight.path: np.asarray(weight) for weight in model.weights}
  source = f'the Keras model {model.name}'
  return from_arrays(arrays, module, template, source=source)


def from_arrays(
  arrays: Mapping[str, np.ndarray],
  module: nn.Module,
  template: PyTree,
  *,
  source: str,
) -> PyTree:
  """Puts arrays with Keras names into the structure of our variables.

  Args:
    arrays: By names like `block1_conv1/kernel` and `conv1_bn/moving_mean`.
      Automatic names like `conv2d_7/kernel` count from any number on.
    module: The network, for errors.
    template: Its variables, or their `jax.eval_shape`.
    source: What the arrays come from, for errors.

  Returns:
    Variables in the structure of the template.

  Raises:
    UserError: If a name is left over or missing, listing both sides, or if a
      shape differs.
  """
  arrays = _count_from_one(arrays)
  wanted = traverse_util.flatten_dict(template)
  layers_of_norm = {path[-2] for path in wanted if path[0] == 'batch_stats'}
  names = {path: _keras_name(path, layers_of_norm) for path in wanted}
  check_names(source, arrays, names.values())
  variables = {}
  for path, leaf in wanted.items():
    array = np.asarray(arrays[names[path]])
    if array.shape[2:] == (*leaf.shape[3:], 1) and leaf.shape[2:3] == (1,):
      array = array.swapaxes(2, 3)  # depthwise: (h, w, C, 1) in Keras
    if array.shape != leaf.shape:
      raise UserError(
        f'{names[path]} of {source} has the shape {array.shape}, but this '
        f'{type(module).__name__} needs {leaf.shape}; look at '
        'its width and number of classes'
      )
    variables[path] = jnp.asarray(array, leaf.dtype)
  return traverse_util.unflatten_dict(variables)


def _count_from_one(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Numbers layers with automatic names from 1, as published files do.

  Keras names a layer without a name by its kind and a counter of the process,
  in the order in which the layers were made: conv2d, conv2d_1, and for a
  second model conv2d_94 and on.
  """
  layers = {name.rpartition('/')[0] for name in arrays}
  renamed = {}
  for kind, pattern in _AUTOMATIC.items():
    numbers = {
      layer: int(match[1] or 0)
      for layer in layers
      if (match := re.fullmatch(pattern, layer))
    }
    for rank, layer in enumerate(sorted(numbers, key=numbers.__getitem__), 1):
      renamed[layer] = f'{kind}_{rank}'
  parts = {name: name.rpartition('/') for name in arrays}
  return {
    f'{renamed.get(layer, layer)}{slash}{leaf}': arrays[name]
    for name, (layer, slash, leaf) in parts.items()
  }


def _keras_name(path: tuple[str, ...], layers_of_norm: set[str]) -> str:
  *_, layer, leaf = path
  if layer in layers_of_norm:
    leaf = _NORMALISATION[leaf]
  return f'{layer}/{leaf}'


def read_h5(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads all weights of an .h5 file that names them layer by layer.

  Args:
    path: As for `load_h5`.

  Returns:
    Arrays by names like `conv1/kernel`, in the order of the file. Spellings of
    older files are brought up to date: a layer `conv1/conv` is `conv1_conv`.

  Raises:
    DataError: If the file is absent or broken, or of another kind.
  """
  arrays = {}
  try:
    with h5py.File(path) as file:
      root = file.get('model_weights', file)
      for layer in map(_text, root.attrs['layer_names']):
        group = root[layer]
        name = layer.replace('/', '_')
        name = _OLD_LAYERS.get(name, name)
        for weight in map(_text, group.attrs['weight_names']):
          leaf = weight.split('/')[-1].removesuffix(':0')
          leaf = re.sub(r'_\d+$', '', leaf.removeprefix(f'{layer}_'))
          arrays[f'{name}/{_OLD.get(leaf, leaf)}'] = np.asarray(
            group[weight][()]
          )
        if f'{name}/pointwise_kernel' not in arrays:  # else it is separable
          old = f'{name}/depthwise_kernel'
          if old in arrays:
            arrays[f'{name}/kernel'] = arrays.pop(old)
  except _BROKEN_H5 as error:
    raise DataError(
      f'cannot read {os.fspath(path)} as Keras weights: {error}'
    ) from error
  return arrays


def _text(name: str | bytes) -> str:
  return name.decode() if isinstance(name, bytes) else name
