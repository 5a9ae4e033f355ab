"""What a training carries from step to step, and its settings."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import reduce_on_plateau

from jaxadv.errors import UserError
from jaxadv.types import PyTree

_CHOICES = {
  'optimizer': ('adam', 'sgd'),
  'schedule': ('constant', 'cosine', 'plateau', 'exponential'),
}
_DECAY = 0.999995  # of 'exponential', a step


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Settings of a training; the defaults are those of the paper's detectors.

  Attributes:
    num_epochs: Passes over the training rows, at least 1.
    batch_size: Rows a step over all devices, at least 1.
    optimizer: 'adam' (weight decay decoupled from the gradient) or 'sgd' (with
      momentum; weight decay added to the gradient).
    learning_rate: Initial value, above 0.
    schedule: 'constant'; 'cosine', to 0 at the last step; 'plateau', times
      `plateau_factor` whenever the validation loss has not improved by a
      relative 1e-4 for `plateau_patience` epochs; 'exponential', times
      0.999995 a step, as PixelCNN++ is trained.
    momentum: Of 'sgd', in [0, 1).
    betas: Of 'adam', what its averages of the gradient and of its square keep
      a step, each in [0, 1).
    weight_decay: On parameters with two or more axes (not on biases, not on
      normalisation), at least 0.
    plateau_factor: In (0, 1).
    plateau_patience: In epochs, at least 1.
    min_learning_rate: Where 'plateau' stops, at least 0.

  Raises:
    UserError: If a value is outside its range.
  """

  num_epochs: int = 30
  batch_size: int = 32
  optimizer: Literal['adam', 'sgd'] = 'adam'
  learning_rate: float = 1e-4
  schedule: Literal['constant', 'cosine', 'plateau', 'exponential'] = 'plateau'
  momentum: float = 0.9
  betas: tuple[float, float] = (0.9, 0.999)
  weight_decay: float = 0.0
  plateau_factor: float = 0.5
  plateau_patience: int = 3
  min_learning_rate: float = 1e-6

  def __post_init__(self):
    """Checks the ranges."""
    for name, choices in _CHOICES.items():
      if getattr(self, name) not in choices:
        raise UserError(
          f'{name} must be one of {", ".join(choices)}; got '
          f'{getattr(self, name)!r}'
        )
    ranges = {
      'num_epochs': (self.num_epochs >= 1, 'at least 1'),
      'batch_size': (self.batch_size >= 1, 'at least 1'),
      'learning_rate': (self.learning_rate > 0, 'above 0'),
      'momentum': (0 <= self.momentum < 1, 'in [0, 1)'),
      'betas': (
        len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
        'two numbers in [0, 1)',
      ),
      'weight_decay': (self.weight_decay >= 0, 'at least 0'),
      'plateau_factor': (0 < self.plateau_factor < 1, 'in (0, 1)'),
      'plateau_patience': (self.plateau_patience >= 1, 'at least 1'),
      'min_learning_rate': (self.min_learning_rate >= 0, 'at least 0'),
    }
    for name, (good, allowed) in ranges.items():
      if not good:
        raise UserError(
          f'{name} must be {allowed}; got {getattr(self, name)!r}'
        )


class Best(NamedTuple):
  """The weights of the best epoch so far, of a task that judges its epochs.

  Attributes:
    judged: float32[], what the task's `judge` gave, -inf before the first.
    params: As of `TrainState`.
    batch_stats: As of `TrainState`.
  """

  judged: jax.Array
  params: PyTree
  batch_stats: PyTree


class TrainState(NamedTuple):
  """Arrays that a training carries; all of a member's, stacked for several.

  Attributes:
    step: int32[], steps done.
    params: What is trained.
    batch_stats: Running statistics, {} for a network without.
    opt_state: Moments of the optimizer.
    plateau: State of the plateau schedule; its `scale` multiplies the
      learning rate.
    best: A `Best` while a task that judges its epochs is trained, else None.
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


def _optimizer(config: TrainConfig) -> optax.GradientTransformation:
  """Gives the direction of a step; `update_state` scales it."""
  decay = optax.add_decayed_weights(
    config.weight_decay,
    mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
  )
  if config.optimizer == 'adam':
    return optax.chain(optax.scale_by_adam(*config.betas), decay)
  return optax.chain(decay, optax.trace(config.momentum))


def _plateau(config: TrainConfig) -> optax.GradientTransformationExtraArgs:
  floor = min(config.min_learning_rate / config.learning_rate, 1.0)
  return reduce_on_plateau(
    factor=config.plateau_factor,
    patience=config.plateau_patience,
    min_scale=floor,
  )


def create_state(
  variables: dict[str, PyTree], config: TrainConfig, *, judged: bool = False
) -> TrainState:
  """Makes the state before the first step.

  Args:
    variables: 'params', float32, and 'batch_stats' if the network has any.
    config: The settings.
    judged: Whether the weights of the best epoch are kept, see `keep_best`.

  Returns:
    The state.
  """
  params, batch_stats = variables['params'], variables.get('batch_stats', {})
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    opt_state=_optimizer(config).init(params),
    plateau=_plateau(config).init(jnp.zeros((), jnp.float32)),
    best=Best(jnp.float32(-jnp.inf), params, batch_stats) if judged else None,
  )


def learning_rate(
  state: TrainState, config: TrainConfig, num_steps: int
) -> jax.Array:
  """Gives the learning rate of the next step.

  Args:
    state: The state.
    config: The settings.
    num_steps: Steps of the whole training, for 'cosine'.

  Returns:
    float32[].
  """
  if config.schedule == 'cosine':
    decay = optax.cosine_decay_schedule(config.learning_rate, num_steps)
    return jnp.asarray(decay(state.step), jnp.float32)
  if config.schedule == 'exponential':
    # Not a power of a float32, which would be off by 1e-3 after many steps.
    decay = jnp.exp(state.step * np.float32(math.log(_DECAY)))
    return config.learning_rate * decay
  return config.learning_rate * state.plateau.scale


def update_state(
  state: TrainState,
  gradients: PyTree,
  batch_stats: PyTree,
  config: TrainConfig,
  num_steps: int,
) -> TrainState:
  """Takes one step of the optimizer.

  Args:
    state: The state.
    gradients: Of the mean loss with respect to `state.params`.
    batch_stats: The running statistics after this step.
    config: The settings.
    num_steps: Steps of the whole training.

  Returns:
    The state after the step.
  """
  rate = learning_rate(state, config, num_steps)
  direction, opt_state = _optimizer(config).update(
    gradients, state.opt_state, state.params
  )
  updates = jax.tree.map(lambda leaf: -rate * leaf, direction)
  return state._replace(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    batch_stats=batch_stats,
    opt_state=opt_state,
  )


def end_epoch(
  state: TrainState, valid_loss: jax.Array, config: TrainConfig
) -> TrainState:
  """Shows the validation loss to the plateau schedule.

  Args:
    state: The state.
    valid_loss: float32[].
    config: The settings; schedules other than 'plateau' ignore it.

  Returns:
    The state, perhaps with a smaller learning rate.
  """
  if config.schedule != 'plateau':
    return state
  _, plateau = _plateau(config).update(
    jnp.ones(()), state.plateau, value=valid_loss
  )
  return state._replace(plateau=plateau)


def keep_best(state: TrainState, judged: jax.Array) -> TrainState:
  """Remembers the weights after an epoch if none was judged as high before.

  Args:
    state: The state after the epoch, its `best` not None.
    judged: float32[], how good it is.

  Returns:
    The state with an updated `best`.
  """
  assert state.best is not None
  now = Best(judged, state.params, state.batch_stats)
  better = judged > state.best.judged
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
