"""The one loop over batches: pictures in, results of all of them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxadv import hosts
from jaxadv.errors import UserError, explain_out_of_memory


def map_batches(
  function: Callable[..., Any],
  *columns: Any,
  batch_size: int,
  mesh: Mesh | None = None,
) -> Any:
  """Calls a function of rows, so many at a time, and joins what it gives.

  All batches are of one size, so that a compiled function meets one shape;
  the last one is filled with rows from the start.

  Args:
    function: Of arrays with the leading axis of rows, such as a jitted one;
      gives an array of as many rows, or a pytree of such.
    *columns: Arrays of N rows each, NumPy's or JAX's; a column that is None
      is handed on as None.
    batch_size: Rows at a time, at least 1; rounded up to a multiple of the
      devices of `mesh`. Fewer rows are filled up, too.
    mesh: Devices that share the rows of a batch, on an axis called 'data'.

  Returns:
    What the function gives of all rows, in NumPy arrays of N rows.

  Raises:
    UserError: If there is no row, `batch_size` is below 1, or columns or
      results differ in their number of rows.
    DataError: If memory does not suffice; names a smaller batch size.
  """
  n = next(len(column) for column in columns if column is not None)
  lengths = [len(column) for column in columns if column is not None]
  if len(set(lengths)) > 1:
    raise UserError(f'the columns have {lengths} rows; give as many of each')
  if batch_size < 1 or not n:
    raise UserError(
      f'batch_size is {batch_size}, of {n} rows; both must be at least 1'
    )
  sharding = None
  if mesh is not None:
    batch_size = -(-batch_size // mesh.size) * mesh.size
    sharding = NamedSharding(mesh, PartitionSpec('data'))

  def take(column: Any, rows: np.ndarray) -> Any:
    part = None if column is None else column[rows]
    return part if sharding is None else hosts.put(part, sharding)

  parts: list[Any] = []
  with explain_out_of_memory(batch_size):
    for start in range(0, n, batch_size):
      rows = np.arange(start, start + batch_size) % n
      results = function(*(take(column, rows) for column in columns))
      leaves = jax.tree.leaves(results)
      if any(np.shape(leaf)[:1] != (batch_size,) for leaf in leaves):
        raise UserError(
          f'the function gives {jax.tree.map(np.shape, results)} of '
          f'{batch_size} rows; it has to give as many rows'
        )
      # The device computes this batch while the last one is fetched.
      if parts:
        parts[-1] = hosts.fetch(parts[-1])
      parts.append(results)
    parts[-1] = hosts.fetch(parts[-1])
    return jax.tree.map(lambda *part: np.concatenate(part)[:n], *parts)
