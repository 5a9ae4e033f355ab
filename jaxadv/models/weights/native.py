"""Our own files of weights: .npz, one array a variable, named by its path."""

from __future__ import annotations

import os

from flax import traverse_util

from jaxadv.models.weights import formats
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


def read_variables(
  path: str | os.PathLike[str], template: PyTree | None = None
) -> PyTree:
  """Reads variables.

  Args:
    path: A file of `write_variables`.
    template: Variables of the shapes to expect, or their `jax.eval_shape`;
      None for those of the file.

  Returns:
    The variables, in the structure of the template.

  Raises:
    DataError: If the file is absent or broken, or a value is not finite.
    UserError: If names or shapes differ from the template's.
  """
  arrays = read_npz(path)
  if template is None:
    template = traverse_util.unflatten_dict(arrays, sep='/')
  return formats.to_variables('own', arrays, template, source=path)
