"""Reads files of weights and converts them, by name, to our variables.

Three layouts are known, a function each that says how a variable of ours is
called there: 'own', 'keras' and 'torchvision'.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from jaxadv.errors import DataError, UserError
from jaxadv.storage import read_npz
from jaxadv.types import PyTree

Arrays = dict[str, np.ndarray]
# Our variables, or their shapes, by path: ('params', ..., layer, leaf).
_Wanted = Mapping[tuple[str, ...], jax.ShapeDtypeStruct]
# Arrays, axes in our order, and the name among them of each variable.
_Converted = tuple[Arrays, dict[tuple[str, ...], str]]

# What readers raise for a file that is broken or holds something else, such as
# a type of number that NumPy does not have.
_BROKEN = (
  OSError,
  KeyError,
  ValueError,
  TypeError,
  AttributeError,
  RuntimeError,
  safetensors.SafetensorError,
)
# The layers of logits.
_CLASSIFIERS = ('predictions', 'conv_preds', 'fc', 'linear')

_KERAS_NORMALISATION = {
  'scale': 'gamma',
  'bias': 'beta',
  'mean': 'moving_mean',
  'var': 'moving_variance',
}
# Spellings in files of Keras 1, whose running_std is a variance.
_KERAS_1 = {
  'W': 'kernel',
  'b': 'bias',
  'running_mean': 'moving_mean',
  'running_std': 'moving_variance',
}
# Layers without a name of their own, as Keras 1 and later ones call them.
_KERAS_AUTOMATIC = {
  'conv2d': r'conv(?:olution)?2d(?:_(\d+))?',
  'batch_normalization': r'batch_?normalization(?:_(\d+))?',
}
# The layer of logits in the published files of ResNet and DenseNet, which
# Keras loads by position.
_KERAS_POSITIONAL = {'probs': 'predictions', 'fc1000': 'predictions'}

_TORCHVISION_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
# By rank: convolutions from OIHW to HWIO, dense layers from (out, in).
_TORCHVISION_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}


def read(path: str | os.PathLike[str]) -> tuple[str, Arrays]:
  """Reads a file of weights, whole.

  Args:
    path: A file (.h5, .npz or .safetensors); see `published.find`. An .h5 is
      one of `Model.save_weights` of Keras 2 or of `Model.save`: the
      `.weights.h5` of Keras 3 do not hold the names of layers.

  Returns:
    The layout ('own', 'keras' or 'torchvision') and the arrays by their names
    in the file. Old spellings of Keras are brought up to date: a layer
    `conv1/conv` is `conv1_conv`.

  Raises:
    DataError: If the file is absent or broken, or of another kind; names it.
  """
  suffix = Path(path).suffix
  if suffix == '.npz':
    arrays = read_npz(path)
    own = any(name.startswith('params/') for name in arrays)
    return ('own' if own else 'keras'), arrays
  keras = suffix == '.h5'
  try:
    if keras:
      return 'keras', _read_h5(path)
    return 'torchvision', safetensors.numpy.load_file(path)
  except _BROKEN as error:
    kind = ' as Keras weights' if keras else ''
    raise DataError(f'cannot read {os.fspath(path)}{kind}: {error}') from error


def _read_h5(path: str | os.PathLike[str]) -> Arrays:
  """Reads all weights, by names like `conv1/kernel`, in the file's order."""
  arrays = {}
  with h5py.File(path) as file:
    root = file.get('model_weights', file)
    for layer in map(_text, root.attrs['layer_names']):
      group = root[layer]
      name = layer.replace('/', '_')
      name = _KERAS_POSITIONAL.get(name, name)
      for weight in map(_text, group.attrs['weight_names']):
        leaf = weight.split('/')[-1].removesuffix(':0')
        leaf = re.sub(r'_\d+$', '', leaf.removeprefix(f'{layer}_'))
        arrays[f'{name}/{_KERAS_1.get(leaf, leaf)}'] = np.asarray(
          group[weight][()]
        )
      if f'{name}/pointwise_kernel' not in arrays:  # else it is separable
        old = f'{name}/depthwise_kernel'
        if old in arrays:
          arrays[f'{name}/kernel'] = arrays.pop(old)
  return arrays


def _text(name: str | bytes) -> str:
  return name.decode() if isinstance(name, bytes) else name


def num_classes(
  arrays: Mapping[str, np.ndarray], *, source: str | os.PathLike[str]
) -> int:
  """Gives the number of classes of the network that arrays belong to.

  Args:
    arrays: As `read` gives them.
    source: What they come from, for errors.

  Raises:
    UserError: If they do not hold a classifier.
  """
  for name, array in arrays.items():
    *_, layer, leaf = '', *re.split('[/.]', name)
    if layer in _CLASSIFIERS and leaf == 'bias':
      return len(array)
  raise UserError(
    f'{os.fspath(source)} does not hold the classifier on top ('
    f'{", ".join(_CLASSIFIERS)}); give weights that include it'
  )


def to_variables(
  layout: str,
  arrays: Mapping[str, np.ndarray],
  template: PyTree,
  *,
  source: str | os.PathLike[str],
) -> PyTree:
  """Puts arrays, by name, into the structure of our variables.

  Args:
    layout: Whose names they have: 'own', 'keras' or 'torchvision'.
    arrays: As `read` gives them. Those of a `keras.Model` are
      `{weight.path: np.asarray(weight) for weight in model.weights}`.
    template: The network's variables, or their `jax.eval_shape`.
    source: What the arrays come from, for errors.

  Returns:
    Variables in the structure, and of the dtypes, of the template.

  Raises:
    UserError: If a name is left over or missing, listing both sides, or if a
      shape differs.
    DataError: If a value is not finite.
  """
  wanted = traverse_util.flatten_dict(template)
  arrays, names = _LAYOUTS[layout](arrays, wanted)
  shapes = {names[path]: leaf.shape for path, leaf in wanted.items()}
  _check(arrays, shapes, os.fspath(source))
  return traverse_util.unflatten_dict(
    {
      path: jnp.asarray(arrays[names[path]], leaf.dtype)
      for path, leaf in wanted.items()
    }
  )


def _own(arrays: Mapping[str, np.ndarray], wanted: _Wanted) -> _Converted:
  """Takes names like `params/block1/block1_conv1/kernel`, the whole path."""
  return dict(arrays), {path: '/'.join(path) for path in wanted}


def _keras(arrays: Mapping[str, np.ndarray], wanted: _Wanted) -> _Converted:
  """Takes names like `block1_conv1/kernel` and `conv1_bn/moving_mean`.

  Automatic names like `conv2d_7/kernel` count from any number on.
  """
  arrays = _count_from_one(arrays)
  layers_of_norm = {path[-2] for path in wanted if path[0] == 'batch_stats'}
  names = {}
  for path, leaf in wanted.items():
    *_, layer, last = path
    if layer in layers_of_norm:
      last = _KERAS_NORMALISATION[last]
    name = names[path] = f'{layer}/{last}'
    theirs = arrays[name].shape if name in arrays else ()
    if theirs[2:] == (*leaf.shape[3:], 1) and leaf.shape[2:3] == (1,):
      # Depthwise: (h, w, C, 1) in Keras.
      arrays[name] = arrays[name].swapaxes(2, 3)
  return arrays, names


def _count_from_one(arrays: Mapping[str, np.ndarray]) -> Arrays:
  """Numbers layers with automatic names from 1, as published files do.

  Keras names a layer without a name by its kind and a counter of the process,
  in the order in which the layers were made: conv2d, conv2d_1, and for a
  second model conv2d_94 and on.
  """
  layers = {name.rpartition('/')[0] for name in arrays}
  renamed = {}
  for kind, pattern in _KERAS_AUTOMATIC.items():
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


def _torchvision(
  arrays: Mapping[str, np.ndarray], wanted: _Wanted
) -> _Converted:
  """Takes names like `layer1.0.conv1.weight` for our `layer1_0_conv1`.

  Convolutions are OIHW, dense layers (out, in); `num_batches_tracked` is
  ignored. Their lists number their members, so dots stand beside digits only.
  """
  names = {
    path: re.sub(r'_(?=\d)|(?<=\d)_', '.', path[-2])
    + f'.{_TORCHVISION_LEAVES[path[-1]]}'
    for path in wanted
  }
  arrays = {
    name: array.transpose(_TORCHVISION_AXES.get(array.ndim))
    for name, array in arrays.items()
    if not name.endswith('num_batches_tracked')
  }
  return arrays, names


_LAYOUTS: dict[
  str, Callable[[Mapping[str, np.ndarray], _Wanted], _Converted]
] = {'own': _own, 'keras': _keras, 'torchvision': _torchvision}


def _check(
  arrays: Arrays, shapes: Mapping[str, tuple[int, ...]], source: str
) -> None:
  """Refuses arrays that are not exactly what the network needs."""
  left = sorted(arrays.keys() - shapes.keys())
  missing = sorted(shapes.keys() - arrays.keys())
  if left or missing:
    raise UserError(
      f'{source} does not fit the network: left over in the file: '
      f'{", ".join(left) or "nothing"}; missing: '
      f'{", ".join(missing) or "nothing"}'
    )
  for name, shape in shapes.items():
    array = arrays[name]
    if array.shape != shape:
      raise UserError(
        f'{name} of {source} has the shape {array.shape} in our order of axes, '
        f'but the network needs {shape}; look at its width and number of '
        'classes'
      )
    if array.dtype.kind not in 'biuf' or not np.isfinite(array).all():
      raise DataError(
        f'{name} of {source} holds values that are not finite numbers; get or '
        'make the file again'
      )
