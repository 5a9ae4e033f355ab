"""Weights in the layout of torchvision, from .safetensors files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from jaxadv.errors import DataError, UserError
from jaxadv.models.weights.native import check_names
from jaxadv.types import PyTree

_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
# What safetensors raises for a file that is broken, or of a type of number
# that NumPy does not have.
_BROKEN_SAFETENSORS = (
  OSError,
  KeyError,
  ValueError,
  TypeError,
  AttributeError,
  safetensors.SafetensorError,
)
# By rank: convolutions from OIHW to HWIO, dense layers from (out, in).
_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}


def load(
  path: str | os.PathLike[str], module: nn.Module, template: PyTree
) -> PyTree:
  """Reads the weights of a torchvision network.

  Args:
    path: Its state dict as .safetensors.
    module: The same network here, for errors.
    template: Its variables, or their `jax.eval_shape`.

  Returns:
    Variables in the structure of the template.

  Raises:
    DataError: If the file is absent or broken.
    UserError: If names or shapes differ from the template's.
  """
  return from_arrays(read(path), module, template, source=os.fspath(path))


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads all arrays of a .safetensors file.

  Args:
    path: The file.

  Returns:
    Arrays by name.

  Raises:
    DataError: If the file is absent or broken; names it.
  """
  try:
    return safetensors.numpy.load_file(path)
  except _BROKEN_SAFETENSORS as error:
    raise DataError(f'cannot read {os.fspath(path)}: {error}') from error


def from_arrays(
  arrays: Mapping[str, np.ndarray],
  module: nn.Module,
  template: PyTree,
  *,
  source: str,
) -> PyTree:
  """Puts a torchvision state dict into the structure of our variables.

  Args:
    arrays: By names like `layer1.0.conv1.weight`, convolutions OIHW, dense
      layers (out, in); `num_batches_tracked` is ignored.
    module: The network, for errors. Its layers are called as theirs with '_'
      in place of '.', such as `layer1_0_conv1`.
    template: Its variables, or their `jax.eval_shape`.
    source: What the arrays come from, for errors.

  Returns:
    Variables in the structure of the template.

  Raises:
    UserError: If a name is left over or missing, listing both sides, or if a
      shape differs.
  """
  arrays = {
    name: array
    for name, array in arrays.items()
    if not name.endswith('num_batches_tracked')
  }
  wanted = traverse_util.flatten_dict(template)
  names = {path: _torch_name(path) for path in wanted}
  check_names(source, arrays, names.values())
  variables = {}
  for path, leaf in wanted.items():
    array = np.asarray(arrays[names[path]])
    array = array.transpose(_AXES.get(array.ndim))
    if array.shape != leaf.shape:
      raise UserError(
        f'{names[path]} of {source} has the shape {array.shape} in our order '
        f'of axes, but this {type(module).__name__} needs {leaf.shape}; look '
        'at its width and number of classes'
      )
    variables[path] = jnp.asarray(array, leaf.dtype)
  return traverse_util.unflatten_dict(variables)


def _torch_name(path: tuple[str, ...]) -> str:
  """Turns ('params', ..., 'layer1_0_conv1', 'kernel') into their name."""
  *_, layer, leaf = path
  # Their lists number their members, so dots stand beside digits only.
  layer = re.sub(r'_(?=\d)|(?<=\d)_', '.', layer)
  return f'{layer}.{_LEAVES[leaf]}'
