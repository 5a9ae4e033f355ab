"""What a training carries from step to step, and its settings."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxadv.errors import UserError
from jaxadv.training import optimizers
from jaxadv.training.optimizers import Group, Optimizer, Schedule
from jaxadv.types import PyTree


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Settings of a training; the defaults are those of the paper's detectors.

  Attributes:
    num_epochs: Passes over the training rows, at least 1.
    batch_size: Rows a step over all devices, at least 1.
    optimizer: As `jaxadv.training.optimizers` reads it, 'adam' or
      'add_decayed_weights:weight_decay=5e-4,sgd:momentum=0.9'; a function that
      builds one from a learning rate, such as `optax.adabelief`; or one that is
      built, which only a training without checkpoints can have.
    learning_rate: The largest or first of the schedule, above 0. None if the
      optimizer is built, with a learning rate of its own, by which the schedule
      is then multiplied.
    schedule: As `jaxadv.training.optimizers` reads it, 'constant', 'cosine',
      'warmup_cosine:warmup_epochs=5'; or a function from the steps done to a
      multiple of the learning rate.
    groups: Parameters with a learning rate or an optimizer of their own, or
      frozen at first; of several that fit, the first counts.

  Raises:
    UserError: If a value is outside its range, or there is no such optimizer
      or schedule.
  """

  num_epochs: int = 30
  batch_size: int = 32
  optimizer: Optimizer = 'adam'
  learning_rate: float | None = 1e-4
  schedule: Schedule = 'reduce_on_plateau:factor=0.5:patience=3:min_scale=0.01'
  groups: tuple[Group, ...] = ()

  def __post_init__(self):
    """Checks the ranges."""
    for name in ('num_epochs', 'batch_size'):
      if not getattr(self, name) >= 1:
        raise UserError(f'{name} must be at least 1; got {getattr(self, name)}')
    object.__setattr__(self, 'groups', tuple(self.groups))
    optimizers.check_optimizer(self.optimizer)
    own = [group.optimizer for group in self.groups if group.optimizer]
    built = [optimizers.is_built(each) for each in (self.optimizer, *own)]
    if any(each != (self.learning_rate is None) for each in built):
      raise UserError(
        'learning_rate must be None if optimizers are built, which have one of '
        'their own, those of groups as well, and else a number above 0; got '
        f'{self.learning_rate!r}'
      )
    if self.learning_rate is not None and not self.learning_rate > 0:
      raise UserError(
        f'learning_rate must be above 0; got {self.learning_rate!r}'
      )
    # Lengths are checked as if an epoch had any number of steps.
    self.build_schedule(1000)

  def build_schedule(self, steps_per_epoch: int) -> optax.Schedule:
    """Gives the learning rate by the steps done, see `optimizers`."""
    rate = 1.0 if self.learning_rate is None else self.learning_rate
    return optimizers.build_schedule(
      self.schedule, rate, self.num_epochs, steps_per_epoch
    )


class Best(NamedTuple):
  """The weights of the best epoch so far, of a task with a selection metric.

  Attributes:
    metric: float32[], what the task's `selection_metric` gave, -inf before the
      first.
    params: As of `TrainState`.
    batch_stats: As of `TrainState`.
  """

  metric: jax.Array
  params: PyTree
  batch_stats: PyTree


class TrainState(NamedTuple):
  """Arrays that a training carries; all of a member's, stacked for several.

  Attributes:
    step: int32[], steps done.
    params: What is trained; of several players, {player: what it trains}.
    batch_stats: Running statistics, {} for a network without.
    opt_state: State of the optimizer; of several players, {player: state}.
    plateau: State of the plateau schedule; its `scale` multiplies the
      learning rate.
    best: A `Best` while a task with a selection metric is trained, else None.
  """

  step: jax.Array
  params: PyTree
  batch_stats: PyTree
  opt_state: Any
  plateau: Any
  best: Best | None = None

  @property
  def variables(self) -> dict[str, PyTree]:
    """What Linen's `apply` takes."""
    return {'params': self.params, 'batch_stats': self.batch_stats}


def create_state(
  variables: dict[str, PyTree],
  config: TrainConfig,
  *,
  players: tuple[str, ...] = (),
  with_best: bool = False,
) -> TrainState:
  """Makes the state before the first step.

  Args:
    variables: 'params', float32, and 'batch_stats' if the network has any.
    config: The settings.
    players: As of the task.
    with_best: Whether the weights of the best epoch are kept, see `keep_best`.

  Returns:
    The state.

  Raises:
    UserError: If players have no parameters, or a group of the settings.
  """
  params, batch_stats = variables['params'], variables.get('batch_stats', {})
  if players and set(players) != set(params):
    raise UserError(
      f'the players are {", ".join(players)} but the parameters are those of '
      f'{", ".join(params)}; each player needs its own'
    )
  owned = {player: params[player] for player in players} or {'': params}
  paths = {
    player: optimizers.paths_of(own, player) for player, own in owned.items()
  }
  optimizers.check_groups(config.groups, sum(paths.values(), []))
  opt_states = {
    player: optimizers.build_optimizer(
      config.optimizer, jnp.zeros(()), config.groups, player=player
    ).init(own)
    for player, own in owned.items()
  }
  plateau = optimizers.plateau_of(config.schedule)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    opt_state=opt_states if players else opt_states[''],
    plateau=plateau.init(jnp.zeros((), jnp.float32)),
    best=Best(jnp.float32(-jnp.inf), params, batch_stats)
    if with_best
    else None,
  )


def learning_rate(
  state: TrainState, config: TrainConfig, steps_per_epoch: int
) -> jax.Array:
  """Gives the learning rate of the next step.

  Args:
    state: The state.
    config: The settings.
    steps_per_epoch: At least 1.

  Returns:
    float32[].
  """
  rate = config.build_schedule(steps_per_epoch)(state.step)
  return jnp.asarray(rate, jnp.float32) * state.plateau.scale


def apply_gradients(
  state: TrainState,
  gradients: PyTree,
  player: str | None = None,
  *,
  config: TrainConfig,
  steps_per_epoch: int,
) -> TrainState:
  """Takes one step of an optimizer.

  Args:
    state: The state.
    gradients: With respect to `state.params`, or to what the player trains.
    player: Whose parameters are moved, by its own optimizer; None in a task
      without players.
    config: The settings.
    steps_per_epoch: At least 1.

  Returns:
    The state with other parameters; `step` is as it was.
  """
  alone = player is None
  params = state.params if alone else state.params[player]
  opt_state = state.opt_state if alone else state.opt_state[player]
  optimizer = optimizers.build_optimizer(
    config.optimizer,
    learning_rate(state, config, steps_per_epoch),
    config.groups,
    state.step,
    steps_per_epoch,
    player or '',
  )
  updates, opt_state = optimizer.update(gradients, opt_state, params)
  params = optax.apply_updates(params, updates)
  if not alone:
    params = state.params | {player: params}
    opt_state = state.opt_state | {player: opt_state}
  return state._replace(params=params, opt_state=opt_state)


def end_epoch(
  state: TrainState, valid_loss: jax.Array, config: TrainConfig
) -> TrainState:
  """Shows the validation loss to the plateau schedule.

  Args:
    state: The state.
    valid_loss: float32[].
    config: The settings, whose schedule is 'reduce_on_plateau'.

  Returns:
    The state, perhaps with a smaller learning rate.
  """
  _, plateau = optimizers.plateau_of(config.schedule).update(
    jnp.ones(()), state.plateau, value=valid_loss
  )
  return state._replace(plateau=plateau)


def keep_best(state: TrainState, metric: jax.Array) -> TrainState:
  """Remembers the weights after an epoch if none was as good before.

  Args:
    state: The state after the epoch, its `best` not None.
    metric: float32[], how good it is.

  Returns:
    The state with an updated `best`.
  """
  assert state.best is not None
  now = Best(metric, state.params, state.batch_stats)
  better = metric > state.best.metric
  return state._replace(
    best=jax.tree.map(
      lambda new, old: jnp.where(better, new, old), now, state.best
    )
  )


def take_best(state: TrainState) -> TrainState:
  """Goes back to the weights of the best epoch, if they were kept."""
  if state.best is None:
    return state
  return state._replace(
    params=state.best.params, batch_stats=state.best.batch_stats, best=None
  )
