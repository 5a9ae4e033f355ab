"""Data parallelism: one mesh, weights replicated, batches split over it.

Everything is plain `jit` with shardings; XLA adds the communication. Under it
BatchNorm sees the whole batch, whatever number of devices it is split over.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxadv.errors import UserError
from jaxadv.hosts import put
from jaxadv.types import PyTree


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Puts devices into a mesh with the single axis 'data'.

  Args:
    devices: The devices; default all, those of other hosts included.

  Returns:
    The mesh.
  """
  return Mesh(np.asarray(jax.devices() if devices is None else devices), 'data')


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
  """Puts a copy of every array on every device.

  Args:
    tree: Arrays; on several hosts, the same on each.
    mesh: The mesh, or None for the default device.

  Returns:
    The tree on the devices.
  """
  return _place(tree, mesh, PartitionSpec())


def constrain_batch(tree: PyTree, mesh: Mesh | None) -> PyTree:
  """Inside `jit`: asks that leading axes be split over the devices.

  Args:
    tree: Arrays [B, ...].
    mesh: The mesh; with None nothing is asked.

  Returns:
    The same tree.
  """
  return _constrain(tree, mesh, PartitionSpec('data'))


def constrain_replicated(tree: PyTree, mesh: Mesh | None) -> PyTree:
  """Inside `jit`: asks that every device hold a copy.

  Args:
    tree: Arrays.
    mesh: The mesh; with None nothing is asked.

  Returns:
    The same tree.
  """
  return _constrain(tree, mesh, PartitionSpec())


def _place(tree: PyTree, mesh: Mesh | None, spec: PartitionSpec) -> PyTree:
  return put(tree, None if mesh is None else NamedSharding(mesh, spec))


def _constrain(tree: PyTree, mesh: Mesh | None, spec: PartitionSpec) -> PyTree:
  if mesh is None or not jax.tree.leaves(tree):
    return tree
  return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))


def check_batch_size(batch_size: int, mesh: Mesh | None) -> None:
  """Checks that a batch can be split evenly over the devices.

  Args:
    batch_size: The global batch size.
    mesh: The mesh, or None.

  Raises:
    UserError: If it cannot; names the next batch size that can.
  """
  if mesh is None or batch_size % mesh.size == 0:
    return
  fitting = -(-batch_size // mesh.size) * mesh.size
  raise UserError(
    f'a batch size of {batch_size} cannot be split evenly over {mesh.size} '
    f'devices; try batch_size={fitting}'
  )


def all_devices() -> Mesh | None:
  """Gives the mesh of all devices, or None if there is one device."""
  return data_mesh() if jax.device_count() > 1 else None
