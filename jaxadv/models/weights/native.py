"""Our own files of weights: .npz, one array a variable, named by its path."""

from __future__ import annotations

import os

import jax.numpy as jnp
from flax import traverse_util

from jaxadv.errors import UserError
from jaxadv.storage import read_npz, write_npz
from jaxadv.types import PyTree


def write_variables(path: str | os.PathLike[str], variables: PyTree) -> None:
  """Writes variables, whole or not at all.

  Args:
    path: The file, .npz.
    variables: Nested dicts of arrays; names are joined by '/'.

  Raises:
    DataError: If the disk is full.
  """
  write_npz(path, **traverse_util.flatten_dict(variables, sep='/'))


def read_variables(path: str | os.PathLike[str], template: PyTree) -> PyTree:
  """Reads variables.

  Args:
    path: A file of `write_variables`.
    template: Variables of the shapes to expect, or their `jax.eval_shape`.

  Returns:
    The variables, in the structure of the template.

  Raises:
    DataError: If the file is absent or broken.
    UserError: If names or shapes differ from the template's.
  """
  found = read_npz(path)
  wanted = traverse_util.flatten_dict(template, sep='/')
  check_names(path, found, wanted)
  for name, leaf in wanted.items():
    if found[name].shape != leaf.shape:
      raise UserError(
        f'{name} in {path} has the shape {found[name].shape}, but the network '
        f'needs {leaf.shape}; look at its width and number of classes'
      )
  arrays = {n: jnp.asarray(found[n], leaf.dtype) for n, leaf in wanted.items()}
  return traverse_util.unflatten_dict(arrays, sep='/')


def check_names(path, found, wanted) -> None:
  """Refuses weights of which any name is left over or missing.

  Args:
    path: The file, for the error.
    found: Names in the file.
    wanted: Names that the network needs.

  Raises:
    UserError: Listing both sides.
  """
  left, missing = (
    sorted(set(found) - set(wanted)),
    sorted(set(wanted) - set(found)),
  )
  if left or missing:
    raise UserError(
      f'{path} does not fit the network: left over in the file: '
      f'{", ".join(left) or "nothing"}; missing: '
      f'{", ".join(missing) or "nothing"}'
    )
