"""The one training loop: an epoch is one compiled call.

Several independent trainings of the same shapes, called members, run in one
compiled program: one after the other on a CPU (`lax.map`), side by side on an
accelerator (`vmap`), where kernels of one network are too small to fill it.
Training one network is the case of one member.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxadv.errors import DataError, UserError, explain_out_of_memory
from jaxadv.hosts import own_copy
from jaxadv.storage import as_plain, code_version, fingerprint
from jaxadv.training import checkpoints
from jaxadv.training.mesh import (
  check_batch_size,
  constrain_batch,
  constrain_replicated,
  replicate,
)
from jaxadv.training.optimizers import is_plateau
from jaxadv.training.state import (
  TrainConfig,
  TrainState,
  apply_gradients,
  create_state,
  end_epoch,
  keep_best,
  learning_rate,
  take_best,
)
from jaxadv.training.tasks import Task
from jaxadv.types import PyTree

MemberMode = Literal['map', 'vmap']
History = dict[str, np.ndarray]
# The batch size of a training is part of its recipe: no flag changes it.
_ADVICE = (
  'train a narrower network (name:width, as in vgg16:0.5), or split batches '
  'over more devices'
)

Progress = Callable[[int, int, dict[str, np.ndarray]], None]


class FitResult(NamedTuple):
  """What a training gives.

  Attributes:
    state: The state after the last epoch, with the weights of the best one if
      the task has a `selection_metric`; of several members stacked, every leaf
      [E, ...].
    history: By name ('train_loss' or those of the task's players,
      'learning_rate', 'valid_loss', `valid_...` of what the task measures,
      'valid_selection_metric' if it has one), float32[epochs], or
      float32[epochs, E].
  """

  state: TrainState
  history: History


def fit(
  key: jax.Array,
  task: Task,
  data: PyTree,
  train_indices: Any,
  valid_indices: Any,
  config: TrainConfig,
  *,
  mesh: Mesh | None = None,
  checkpoint_dir: str | os.PathLike[str] | None = None,
  checkpoint_every: int = 5,
  progress: Progress | None = None,
) -> FitResult:
  """Trains one network; the same as `fit_members` with one member, number 0.

  Args:
    key: One key.
    task: What is trained.
    data: As in `Task`.
    train_indices: int[n], rows to train on.
    valid_indices: int[m], rows to validate on, or None.
    config: The settings.
    mesh: As in `fit_members`.
    checkpoint_dir: As in `fit_members`.
    checkpoint_every: As in `fit_members`.
    progress: As in `fit_members`, with arrays of one element.

  Returns:
    The final state and the history, without the axis of members.

  Raises:
    UserError: As `fit_members`.
    DataError: As `fit_members`.
  """
  state, history = fit_members(
    key[None],
    task,
    data,
    train_indices,
    valid_indices,
    config,
    mesh=mesh,
    checkpoint_dir=checkpoint_dir,
    checkpoint_every=checkpoint_every,
    progress=progress,
  )
  only = {name: values[:, 0] for name, values in history.items()}
  return FitResult(take_member(state, 0), only)


def fit_members(
  keys: jax.Array,
  task: Task,
  data: PyTree,
  train_indices: Any,
  valid_indices: Any,
  config: TrainConfig,
  *,
  members: Any = None,
  member_mode: MemberMode | None = None,
  mesh: Mesh | None = None,
  checkpoint_dir: str | os.PathLike[str] | None = None,
  checkpoint_every: int = 5,
  data_identity: Any = None,
  progress: Progress | None = None,
) -> FitResult:
  """Trains several independent networks of one shape in one program.

  A member's result depends on its key, number and rows only, not on the other
  members, and an interrupted training that is resumed ends with the same bits
  as one that was not.

  Args:
    keys: key[E].
    task: What is trained.
    data: As in `Task`; put on the device as a whole.
    train_indices: int[E, n], or int[n] for all members alike. Each epoch
      visits them in a new random order; the last batch is filled up with rows
      of the same epoch that do not count.
    valid_indices: int[E, m] or int[m]; None for no validation.
    config: The settings.
    members: int[E], the numbers that the task is told; default 0 to E - 1.
    member_mode: 'map' or 'vmap'; default 'map' on CPU and for one member.
    mesh: Splits each batch over its devices; default no splitting.
    checkpoint_dir: A folder for checkpoints of this training alone, from which
      it resumes, unless the code of the loop has changed (nothing is known of
      that of `task`). Delete it (`delete_checkpoints`) once the result is
      stored.
    checkpoint_every: Epochs from one checkpoint to the next.
    data_identity: What `data` was computed from, for checkpoints to know it
      by; default its bits. Another device may round these differently.
    progress: Called after each epoch with the number of epochs done, of all
      epochs, and the newest row of the history.

  Returns:
    The final states, stacked, and the history.

  Raises:
    UserError: If there are no rows, the batch does not fit the mesh, schedule
      or selection metric have nothing to watch, players or groups have no
      parameters, or the checkpoints are of another training.
    DataError: If a loss or a weight at the end is not finite (names epoch and
      member), or memory does not suffice (says what to try).
  """
  num_members = keys.shape[0]
  train = _rows('train_indices', train_indices, num_members)
  if valid_indices is None:
    if is_plateau(config.schedule):
      raise UserError(
        'the schedule reduce_on_plateau watches the validation loss: pass '
        "valid_indices, or choose the schedule 'constant' or 'cosine'"
      )
    if task.selection_metric is not None:
      raise UserError(
        'the selection_metric of the task is one of the validation rows: pass '
        'valid_indices'
      )
    valid = np.zeros((num_members, 0), np.int32)
  else:
    valid = _rows('valid_indices', valid_indices, num_members)
  check_batch_size(config.batch_size, mesh)
  numbers = np.arange(num_members) if members is None else np.asarray(members)
  numbers = numbers.astype(np.int32)
  member_mode = _choose(member_mode, num_members)

  with contextlib.ExitStack() as stack:
    manager = None
    if checkpoint_dir is not None:
      identity = {
        'code': code_version(__name__),
        'config': _identity(config),
        'keys': keys,
        'members': numbers,
        'train_indices': train,
        'valid_indices': valid,
        'data': fingerprint(data if data_identity is None else data_identity),
      }
      manager = stack.enter_context(
        checkpoints.open_checkpoints(checkpoint_dir, identity)
      )
    stack.enter_context(explain_out_of_memory(config.batch_size, _ADVICE))
    keys, data, train, valid, numbers = replicate(
      (keys, data, train, valid, numbers), mesh
    )
    state = _create_members(
      keys, data, numbers, task=task, config=config, mesh=mesh
    )
    rows: list[dict[str, list[float]]] = []
    if manager is not None:
      state, rows = checkpoints.restore_latest(manager, state)
    for epoch in range(len(rows), config.num_epochs):
      state, found = _train_epoch(
        state,
        keys,
        data,
        train,
        valid,
        numbers,
        epoch,
        task=task,
        config=config,
        mesh=mesh,
        member_mode=member_mode,
      )
      row = {name: np.asarray(values) for name, values in found.items()}
      _check_finite(row, epoch, np.asarray(numbers))
      rows.append({name: values.tolist() for name, values in row.items()})
      done = epoch + 1
      if manager is not None and (
        done % checkpoint_every == 0 or done == config.num_epochs
      ):
        checkpoints.save(manager, state, rows)
      if progress is not None:
        progress(done, config.num_epochs, row)
  history = {
    name: np.asarray([row[name] for row in rows], np.float32)
    for name in rows[0]
  }
  state = own_copy(take_best(state))
  _check_weights(state, np.asarray(own_copy(numbers)), rows[-1])
  return FitResult(state, history)


def measure_members(
  task: Task,
  state: TrainState,
  data: PyTree,
  indices: Any,
  *,
  batch_size: int,
  members: Any = None,
  member_mode: MemberMode | None = None,
  mesh: Mesh | None = None,
) -> dict[str, np.ndarray]:
  """Applies a task's `measure` to many rows, for several trained networks.

  Args:
    task: What was trained.
    state: Stacked states, every leaf [E, ...].
    data: As in `Task`.
    indices: int[E, n], or int[n] for all members alike.
    batch_size: Rows at a time.
    members: As in `fit_members`.
    member_mode: As in `fit_members`.
    mesh: As in `fit_members`.

  Returns:
    What `measure` gives by name, each [E, n, ...].

  Raises:
    UserError: If there are no rows or the batch does not fit the mesh.
    DataError: If memory does not suffice (names a smaller batch size).
  """
  num_members = state.step.shape[0]
  rows = _rows('indices', indices, num_members)
  check_batch_size(batch_size, mesh)
  numbers = np.arange(num_members) if members is None else np.asarray(members)
  with explain_out_of_memory(batch_size):
    state, data, rows, numbers = replicate(
      (state, data, rows, numbers.astype(np.int32)), mesh
    )
    found = _measure(
      state,
      data,
      rows,
      numbers,
      task=task,
      batch_size=batch_size,
      mesh=mesh,
      member_mode=_choose(member_mode, num_members),
    )
    return jax.tree.map(np.asarray, found)


def take_member(state: TrainState, member: int) -> TrainState:
  """Takes one member's state out of a stack.

  Args:
    state: Stacked states, every leaf [E, ...].
    member: Its place in the stack.

  Returns:
    The state without the leading axis.
  """
  return jax.tree.map(lambda leaf: leaf[member], state)


def _identity(config: TrainConfig) -> Any:
  """Gives the settings as checkpoints know them."""
  try:
    return as_plain(config)
  except TypeError as error:
    raise UserError(
      'checkpoints tell trainings apart by their settings, which an optimizer '
      'or a schedule that is built hides: give its text or a function of a '
      'module that builds it, or leave out checkpoint_dir'
    ) from error


def _choose(member_mode: MemberMode | None, num_members: int) -> MemberMode:
  """Picks the way to run members where the caller leaves it open."""
  if member_mode is not None:
    return member_mode
  # vmap turns convolutions into grouped ones, 5x slower on a CPU.
  alone = num_members == 1 or jax.default_backend() == 'cpu'
  return 'map' if alone else 'vmap'


def _rows(name: str, indices: Any, num_members: int) -> np.ndarray:
  """Checks row numbers and gives every member its own: int32[E, n]."""
  indices = np.asarray(indices)
  if indices.ndim == 1:
    indices = np.broadcast_to(indices, (num_members, indices.shape[0]))
  if indices.ndim != 2 or indices.shape[0] != num_members:
    raise UserError(
      f'{name} must be int[n] or int[{num_members}, n], a row for each '
      f'member; got shape {indices.shape}'
    )
  if indices.shape[1] == 0:
    raise UserError(f'{name} is empty; at least one row is needed')
  return indices.astype(np.int32)


def _check_finite(
  row: dict[str, np.ndarray], epoch: int, members: np.ndarray
) -> None:
  for name in row:
    watched = name.startswith('train_') or name == 'valid_loss'
    if not watched or np.isfinite(row[name]).all():
      continue
    place = int(np.flatnonzero(~np.isfinite(row[name]))[0])
    rate = float(row['learning_rate'][place])
    raise DataError(
      f'{name} is not finite in epoch {epoch + 1} of member '
      f'{members[place]} (learning rate {rate:g}): try a learning rate of '
      f'{rate / 10:g}, and look for NaN in the data'
    )


def _check_weights(
  state: TrainState, members: np.ndarray, row: dict[str, list[float]]
) -> None:
  """Refuses weights that the last step broke, of which no loss tells."""
  finite = np.ones(len(members), bool)
  for leaf in jax.tree.leaves((state.params, state.batch_stats)):
    finite &= np.isfinite(np.asarray(leaf).reshape(len(members), -1)).all(1)
  if not finite.all():
    place = int(np.argmin(finite))
    rate = row['learning_rate'][place]
    raise DataError(
      f'the weights of member {members[place]} are not finite after the last '
      f'epoch (learning rate {rate:g}): try a learning rate of {rate / 10:g}, '
      'and look for NaN in the data'
    )


def _over_members(
  member_mode: MemberMode, function: Callable[..., Any], *stacked: PyTree
):
  if member_mode == 'vmap':
    return jax.vmap(function)(*stacked)
  return jax.lax.map(lambda one: function(*one), stacked)


def _in_batches(
  indices: jax.Array, batch_size: int
) -> tuple[jax.Array, jax.Array]:
  """Lays int32[n] out as int32[steps, batch]; the mask tells the first n.

  The rest of the last batch repeats rows from the start.
  """
  num_rows = indices.shape[0]
  num_steps = -(-num_rows // batch_size)
  places = jnp.arange(num_steps * batch_size).reshape(num_steps, batch_size)
  return indices[places % num_rows], places < num_rows


@functools.partial(jax.jit, static_argnames=('task', 'config', 'mesh'))
def _create_members(keys, data, members, *, task, config, mesh) -> TrainState:
  def create(one):
    key, member = one
    # Epochs use keys folded with 0, 1, ...: the start takes another branch.
    init_key = jax.random.fold_in(key, np.uint32(0xFFFFFFFF))
    return create_state(
      task.init(init_key, data, member),
      config,
      players=task.players,
      with_best=task.selection_metric is not None,
    )

  return constrain_replicated(jax.lax.map(create, (keys, members)), mesh)


@functools.partial(
  jax.jit,
  static_argnames=('task', 'config', 'mesh', 'member_mode'),
  donate_argnames='state',
)
def _train_epoch(
  state,
  keys,
  data,
  train,
  valid,
  members,
  epoch,
  *,
  task,
  config,
  mesh,
  member_mode,
):
  """Trains all members for one epoch and validates them.

  Returns:
    The states and what there is to tell of the epoch, each float32[E].
  """

  def run(state, key, train, valid, member):
    return _member_epoch(
      state, key, data, train, valid, member, epoch, task, config, mesh
    )

  state, found = _over_members(
    member_mode, run, state, keys, train, valid, members
  )
  return constrain_replicated((state, found), mesh)


def _member_epoch(
  state, key, data, train, valid, member, epoch, task, config, mesh
):
  order_key, step_key = jax.random.split(jax.random.fold_in(key, epoch))
  order = jax.random.permutation(order_key, train)
  batches, masks = _in_batches(order, config.batch_size)
  steps_per_epoch = batches.shape[0]
  rate = learning_rate(state, config, steps_per_epoch)
  descend = functools.partial(
    apply_gradients, config=config, steps_per_epoch=steps_per_epoch
  )

  def step(state, batch):
    indices, mask, number = batch
    indices, mask = constrain_batch((indices, mask), mesh)
    gather_key, update_key = jax.random.split(
      jax.random.fold_in(step_key, number)
    )
    examples = constrain_batch(
      task.gather(data, indices, member, gather_key), mesh
    )
    state, losses = task.update(state, examples, mask, update_key, descend)
    totals = {
      f'train_{name}': jnp.where(mask, values, 0).sum()
      for name, values in losses.items()
    }
    return state._replace(step=state.step + 1), totals

  numbers = jnp.arange(steps_per_epoch)
  state, totals = jax.lax.scan(step, state, (batches, masks, numbers))
  found = {name: total.sum() / train.shape[0] for name, total in totals.items()}
  found['learning_rate'] = rate
  if valid.shape[0]:
    measured = _member_measure(
      state, data, valid, member, task, config.batch_size, mesh
    )
    found |= {
      f'valid_{name}': values.mean()
      for name, values in measured.items()
      if values.ndim == 1
    }
    if is_plateau(config.schedule):
      state = end_epoch(state, found['valid_loss'], config)
    if task.selection_metric is not None:
      found['valid_selection_metric'] = task.selection_metric(measured)
      state = keep_best(state, found['valid_selection_metric'])
  return state, found


@functools.partial(
  jax.jit, static_argnames=('task', 'batch_size', 'mesh', 'member_mode')
)
def _measure(
  state, data, indices, members, *, task, batch_size, mesh, member_mode
):
  def run(state, indices, member):
    return _member_measure(state, data, indices, member, task, batch_size, mesh)

  found = _over_members(member_mode, run, state, indices, members)
  return constrain_replicated(found, mesh)


def _member_measure(state, data, indices, member, task, batch_size, mesh):
  """Measures rows in batches; what is measured comes as [n, ...]."""
  batches, _ = _in_batches(indices, batch_size)

  def measure(batch):
    batch = constrain_batch(batch, mesh)
    examples = constrain_batch(task.gather(data, batch, member, None), mesh)
    return task.measure(state.params, state.batch_stats, examples)

  found = jax.lax.map(measure, batches)
  return jax.tree.map(
    lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[: indices.shape[0]], found
  )
