"""Optimizers and learning rate schedules of Optax, as they are written.

An optimizer is `adamw:weight_decay=1e-4`, a name of Optax with arguments of
its function, or several transformations of gradients by commas, chained as
`optax.chain` does and the optimizer last:
`add_decayed_weights:weight_decay=5e-4,sgd:momentum=0.9:nesterov=true`. What
Optax masks weight decay by (`mask`) is set: parameters with two or more axes
decay, biases and normalisation do not.

A schedule is an Optax schedule without the words `_schedule` and `_decay`:
`warmup_cosine:warmup_epochs=5`. Its largest or first value is the learning
rate of the training. One rule gives its lengths: an argument
`..._steps` may be given in epochs, `..._epochs`, which are rounded to whole
steps; `decay_steps` and `transition_steps` are by default the whole training.
An `init_value` or `end_value` without a default is 0. The arguments of
`piecewise_constant` are epochs, each with what the rate is multiplied by from
there on: `piecewise_constant:60=0.1:80=0.1`. `reduce_on_plateau` watches the
validation loss after each epoch.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable
from types import NoneType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from optax.contrib import reduce_on_plateau

from jaxadv import specs
from jaxadv.errors import UserError
from jaxadv.types import PyTree

# As it is written; built; or from a learning rate, which may be traced.
Optimizer: TypeAlias = (
  str
  | optax.GradientTransformation
  | Callable[[Any], optax.GradientTransformation]
)
# As it is written, or from a step to a multiple of the learning rate.
Schedule: TypeAlias = str | Callable[[jax.Array], jax.Array]

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  name: getattr(optax, name)
  for name in (
    'adabelief',
    'adafactor',
    'adagrad',
    'adam',
    'adamax',
    'adamaxw',
    'adamw',
    'amsgrad',
    'lamb',
    'lars',
    'lion',
    'nadam',
    'nadamw',
    'novograd',
    'radam',
    'rmsprop',
    'sgd',
    'yogi',
  )
}
# What may stand before an optimizer.
TRANSFORMS: dict[str, Callable[..., optax.GradientTransformation]] = {
  name: getattr(optax, name)
  for name in (
    'adaptive_grad_clip',
    'add_decayed_weights',
    'clip',
    'clip_by_global_norm',
  )
}
PLATEAU = 'reduce_on_plateau'
SCHEDULES: dict[str, Callable[..., Any]] = {
  re.sub('_schedule|_decay', '', function.__name__): function
  for function in (
    optax.constant_schedule,
    optax.cosine_decay_schedule,
    optax.cosine_onecycle_schedule,
    optax.exponential_decay,
    optax.linear_schedule,
    optax.linear_onecycle_schedule,
    optax.piecewise_constant_schedule,
    optax.polynomial_schedule,
    optax.warmup_constant_schedule,
    optax.warmup_cosine_decay_schedule,
    optax.warmup_exponential_decay_schedule,
  )
} | {PLATEAU: reduce_on_plateau}

_MASKS = ('mask', 'weight_decay_mask')
_RATES = ('peak_value', 'init_value', 'value')
# Optax takes any number.
_SHARE = ('in [0, 1)', lambda value: 0 <= value < 1)
_POSITIVE = ('at least 0', lambda value: value >= 0)
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
  **dict.fromkeys(('b1', 'b2', 'decay', 'momentum'), _SHARE),
  **dict.fromkeys(('eps', 'weight_decay', 'min_scale'), _POSITIVE),
  'patience': ('at least 1', lambda value: value >= 1),
}


@dataclasses.dataclass(frozen=True)
class Group:
  """Parameters that are trained in a way of their own; compared by value.

  Attributes:
    pattern: Which ones: a regular expression that matches the start of their
      path, such as 'Conv_0/kernel'; the path starts with the player if the
      task has several.
    multiplier: Of the learning rate, at least 0.
    optimizer: Default that of the training.
    frozen_epochs: For how many epochs they do not move, at least 0; after
      them the optimizer starts afresh. Running statistics (of BatchNorm) are
      no parameters and move all the time.

  Raises:
    UserError: If a value is outside its range.
  """

  pattern: str
  multiplier: float = 1.0
  optimizer: Optimizer | None = None
  frozen_epochs: int = 0

  def __post_init__(self):
    """Checks the ranges."""
    try:
      re.compile(self.pattern)
    except (re.error, TypeError) as error:
      raise UserError(
        f'pattern is {self.pattern!r}, which is no regular expression: {error}'
      ) from error
    for name in ('multiplier', 'frozen_epochs'):
      if not getattr(self, name) >= 0:
        raise UserError(
          f'{name} must be at least 0; got {getattr(self, name)!r}'
        )
    if self.optimizer is not None:
      check_optimizer(self.optimizer)


def check_optimizer(optimizer: Optimizer) -> None:
  """Raises `UserError` if there is no such optimizer."""
  if isinstance(optimizer, str):
    _chain(optimizer)(1.0)
  elif not (is_built(optimizer) or callable(optimizer)):
    raise UserError(
      f'optimizer is {optimizer!r} but must be a name such as adamw, an '
      'optax.GradientTransformation or a function that builds one from a '
      'learning rate'
    )


def is_built(optimizer: Optimizer) -> bool:
  """Tells whether an optimizer has a learning rate of its own."""
  return isinstance(optimizer, optax.GradientTransformation)


def build_optimizer(
  optimizer: Optimizer,
  rate: jax.Array,
  groups: tuple[Group, ...] = (),
  step: jax.Array | int = 0,
  steps_per_epoch: int = 1,
  player: str = '',
) -> optax.GradientTransformation:
  """Builds an optimizer for one step.

  Its state depends on neither rate nor step.

  Args:
    optimizer: As it is written, or a function of the rate; of one that is
      built, the rate multiplies the updates.
    rate: float32[], the learning rate of the step.
    groups: Parameters with a way of their own; the first that fits counts.
    step: int32[], steps done before.
    steps_per_epoch: At least 1, for `frozen_epochs`.
    player: Whose parameters they are, the start of every path.

  Returns:
    The optimizer.
  """
  rest = _build(optimizer, rate)
  if not groups:
    return rest
  parts = {'rest': rest}
  for number, group in enumerate(groups):
    part = _build(group.optimizer or optimizer, group.multiplier * rate)
    if group.frozen_epochs:
      moves = jnp.asarray(step >= group.frozen_epochs * steps_per_epoch)
      part = optax.conditionally_mask(part, lambda _, moves=moves: moves)
    parts[f'group{number}'] = part
  return optax.partition(
    parts, functools.partial(_labels, groups=groups, player=player)
  )


def check_groups(groups: tuple[Group, ...], paths: list[str]) -> None:
  """Raises `UserError` if a group has no parameters.

  Args:
    groups: The groups.
    paths: Of all parameters, see `paths_of`.
  """
  for group in groups:
    if not any(re.match(group.pattern, path) for path in paths):
      raise UserError(
        f'no parameter has a path that {group.pattern!r} matches; there are '
        f'{", ".join(paths[:4])}{", ..." if len(paths) > 4 else ""}'
      )


def paths_of(params: PyTree, player: str = '') -> list[str]:
  """Gives the paths of parameters as patterns of groups match them."""
  return [
    '/'.join(filter(None, (player, _path(keys))))
    for keys, _ in jax.tree.leaves_with_path(params)
  ]


def build_schedule(
  schedule: Schedule, rate: float, num_epochs: int, steps_per_epoch: int
) -> optax.Schedule:
  """Builds a schedule.

  Args:
    schedule: As it is written, or a function.
    rate: The learning rate.
    num_epochs: Of the whole training.
    steps_per_epoch: At least 1.

  Returns:
    From the number of steps done to the learning rate of the next one; of
    `reduce_on_plateau`, constant.

  Raises:
    UserError: If there is no such schedule, or its lengths do not fit the
      training.
  """
  if callable(schedule):
    return lambda step: rate * schedule(step)
  name = schedule.partition(':')[0] if isinstance(schedule, str) else schedule
  specs.check_name('schedule', name, SCHEDULES)
  steps = lambda epochs: round(epochs * steps_per_epoch)
  if name == PLATEAU:
    plateau_of(schedule)
    return optax.constant_schedule(rate)
  if name == 'piecewise_constant':
    scales = {
      steps(specs.read_number(epoch)): specs.read_number(scale)
      for epoch, scale in specs.split(schedule)
    }
    return optax.piecewise_constant_schedule(rate, scales)
  _, given = specs.read(schedule, 'schedule', _schedule_kinds)
  for key in [key for key in given if key.endswith('_epochs')]:
    counted = key.replace('_epochs', '_steps')
    if counted in given:
      raise UserError(f'{schedule!r} gives {key} and {counted}; give one')
    given[counted] = steps(given.pop(key))
  whole = num_epochs * steps_per_epoch
  needed = _needed(SCHEDULES[name])
  given = {
    key: value
    for key, value in {
      'decay_steps': whole,
      'transition_steps': whole,
      'init_value': 0.0,
      'end_value': 0.0,
    }.items()
    if key in needed
  } | given
  given[_rate_name(inspect.signature(SCHEDULES[name]).parameters)] = rate
  return _call(schedule, SCHEDULES[name], given)


def plateau_of(schedule: Schedule) -> optax.GradientTransformationExtraArgs:
  """Builds what scales the learning rate down; idle for other schedules.

  Args:
    schedule: The schedule of the training.

  Returns:
    A transformation whose state has `scale`, and that is shown a validation
    loss.

  Raises:
    UserError: If it has no such argument.
  """
  if not is_plateau(schedule):
    return reduce_on_plateau()
  _, given = specs.read(str(schedule), 'schedule', _schedule_kinds)
  built: optax.GradientTransformationExtraArgs = _call(
    str(schedule), reduce_on_plateau, given
  )
  return built


def is_plateau(schedule: Schedule) -> bool:
  """Tells whether a schedule watches the validation loss."""
  return isinstance(schedule, str) and schedule.partition(':')[0] == PLATEAU


@functools.cache
def _chain(spec: str) -> Callable[[Any], optax.GradientTransformation]:
  """Reads an optimizer; gives what builds it from a learning rate."""
  *before, last = spec.split(',')
  transforms = [
    _call(part, TRANSFORMS[name], _with_masks(TRANSFORMS[name], given))
    for part in before
    for name, given in [
      specs.read(part, 'transformation', functools.partial(_kinds, TRANSFORMS))
    ]
  ]
  name, given = specs.read(
    last, 'optimizer', functools.partial(_kinds, OPTIMIZERS)
  )
  given = _with_masks(OPTIMIZERS[name], given)

  def build(rate):
    optimizer = _call(last, OPTIMIZERS[name], given | {'learning_rate': rate})
    return optax.chain(*transforms, optimizer) if transforms else optimizer

  return build


def _build(optimizer: Optimizer, rate: Any) -> optax.GradientTransformation:
  if isinstance(optimizer, optax.GradientTransformation):
    return optax.chain(optimizer, optax.scale(rate))
  build = _chain(optimizer) if isinstance(optimizer, str) else optimizer
  return build(rate)


def _labels(params: PyTree, groups: tuple[Group, ...], player: str) -> PyTree:
  def label(path):
    fitting = (
      f'group{number}'
      for number, group in enumerate(groups)
      if re.match(group.pattern, path)
    )
    return next(fitting, 'rest')

  labels = [label(path) for path in paths_of(params, player)]
  return jax.tree.unflatten(jax.tree.structure(params), labels)


def _path(keys: tuple[Any, ...]) -> str:
  return jax.tree_util.keystr(keys, simple=True, separator='/')


def _with_masks(function: Callable[..., Any], given: dict[str, Any]) -> Any:
  """Adds what weight decay is masked by, where a function of Optax does so."""
  parameters = inspect.signature(function).parameters
  return {key: _decays for key in _MASKS if key in parameters} | given


def _decays(params: PyTree) -> PyTree:
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _kinds(
  functions: dict[str, Callable[..., Any]], name: str
) -> dict[str, specs.Kinds]:
  """Gives what can be set by text of a function of Optax."""
  noun = 'optimizer' if functions is OPTIMIZERS else 'transformation'
  specs.check_name(noun, name, functions)
  return _argument_kinds(functions[name])


def _schedule_kinds(name: str) -> dict[str, specs.Kinds]:
  kinds = _argument_kinds(SCHEDULES[name])
  kinds.pop(_rate_name(kinds), None)
  epochs = {
    key.replace('_steps', '_epochs'): (float,)
    for key in kinds
    if key.endswith('_steps')
  }
  return kinds | epochs


def _rate_name(names: Any) -> str:
  return next((name for name in _RATES if name in names), '')


def _argument_kinds(function: Callable[..., Any]) -> dict[str, specs.Kinds]:
  """Gives the arguments of a function that are numbers or yes and no."""
  found: dict[str, specs.Kinds] = {}
  signature = inspect.signature(function, eval_str=True)
  for key, parameter in signature.parameters.items():
    default, annotation = parameter.default, parameter.annotation
    allowed = typing.get_args(annotation) or (annotation,)
    if key in ('learning_rate', *_MASKS):
      continue
    if type(default) in (bool, int, float):
      found[key] = (type(default),)
    elif kinds := [kind for kind in (float, int) if kind in allowed]:
      found[key] = (kinds[0], *([NoneType] if default is None else []))
  return found


def _needed(function: Callable[..., Any]) -> list[str]:
  """Gives the arguments of a function that have no default."""
  return [
    key
    for key, parameter in inspect.signature(function).parameters.items()
    if parameter.default is inspect.Parameter.empty
  ]


def _call(spec: str, function: Callable[..., Any], given: Any) -> Any:
  """Calls a function of Optax, whose objections become ours."""
  missing = [key for key in _needed(function) if key not in given]
  if missing:
    names = ', '.join(missing).replace('_steps', '_epochs')
    raise UserError(f'{spec!r} needs {names}; add it as KEY=VALUE')
  for key, value in given.items():
    allowed, fits = _RANGES.get(key, ('', lambda value: True))
    if value is not None and not fits(value):
      raise UserError(f'{spec!r}: {key} must be {allowed}; got {value!r}')
  try:
    return function(**given)
  except (TypeError, ValueError) as error:
    raise UserError(f'{spec!r} does not fit: {error}') from error
