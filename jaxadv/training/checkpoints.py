"""Checkpoints of a training in progress (Orbax).

A checkpoint appears by rename, so after a kill at any moment the latest whole
one is found again. Beside them, `training.json` says which training they
belong to.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxadv.errors import UserError
from jaxadv.hosts import on_first
from jaxadv.storage import (
  as_plain,
  differences,
  explain_full_disk,
  read_json,
  write_json,
)
from jaxadv.types import PyTree


def open_checkpoints(
  directory: str | os.PathLike[str], identity: Any
) -> ocp.CheckpointManager:
  """Opens the checkpoints of a training; keeps the latest two.

  Args:
    directory: A folder for this training alone; made if need be.
    identity: All that the training depends on; see `storage.as_plain`.

  Returns:
    The manager for `save` and `restore_latest`, a context manager.

  Raises:
    UserError: If the folder holds checkpoints of another training; names the
      fields that differ.
  """
  path = Path(directory).absolute()
  record = path / 'training.json'

  def claim() -> Any:
    if not record.exists():
      write_json(record, as_plain(identity))
    return read_json(record)

  # All hosts go by what the first one finds.
  differing = differences(on_first(claim), identity)
  if differing:
    raise UserError(
      f'the checkpoints in {path} are of another training ({differing}); '
      'delete them or use another folder'
    )
  return ocp.CheckpointManager(
    path,
    options=ocp.CheckpointManagerOptions(
      max_to_keep=2,
      # The next epoch takes over the memory of the state that is saved.
      enable_async_checkpointing=False,
      cleanup_tmp_directories=True,
    ),
  )


def save(
  manager: ocp.CheckpointManager, state: PyTree, rows: list[dict[str, Any]]
) -> None:
  """Saves a training after an epoch.

  Args:
    manager: From `open_checkpoints`.
    state: Arrays.
    rows: The history, a row an epoch, finite numbers only.

  Raises:
    DataError: If the disk is full; names the folder.
  """
  with explain_full_disk(manager.directory):
    manager.save(
      len(rows),
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), rows=ocp.args.JsonSave(rows)
      ),
    )


def restore_latest(
  manager: ocp.CheckpointManager, state: PyTree
) -> tuple[PyTree, list[dict[str, Any]]]:
  """Restores the latest whole checkpoint, if there is one.

  Args:
    manager: From `open_checkpoints`.
    state: The state before the first epoch; tells shapes and devices, which
      may be others than those that the checkpoint was saved from.

  Returns:
    The state and the history, a row for each epoch done; `state` itself and
    an empty history if there is no checkpoint.
  """
  latest = on_first(manager.latest_step)
  if latest is None:
    return state, []
  found = manager.restore(
    latest,
    args=ocp.args.Composite(
      state=ocp.args.StandardRestore(
        jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
      ),
      rows=ocp.args.JsonRestore(),
    ),
  )
  return found['state'], found['rows']


def delete_checkpoints(directory: str | os.PathLike[str]) -> None:
  """Deletes the checkpoints of a training whose result is stored.

  Args:
    directory: As given to the training; may be absent.
  """
  shutil.rmtree(directory, ignore_errors=True)
