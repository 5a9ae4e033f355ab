"""A classifier as attacks, detectors and defences see it.

A `Classifier` is a pytree: its weights are leaves, so new weights of the same
shapes do not retrace a jitted attack, and weights placed on a mesh stay there.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.data.batching import map_batches
from jaxadv.errors import (
  DataError,
  DoubtWarning,
  UserError,
)
from jaxadv.inputs import (
  as_float,
  as_floating,
  as_logits,
  check_shape,
  doubts,
  finite_gradient,
  need_keys,
)
from jaxadv.types import Images, Keys, Logits, PyTree

if TYPE_CHECKING:
  import flax.linen as nn
  from flax import nnx

# Rows of logits that are enough to tell whether they are logits.
_NUM_DOUBTED = 256


@dataclasses.dataclass(frozen=True)
class Normalise:
  """Preprocessing `(images - mean) / std`, per channel.

  Frozen and compared by value, so that it can be a static part of a jitted
  classifier.

  Attributes:
    mean: One value a channel, in image units ([0, 1]).
    std: One value a channel, in image units.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]

  def __post_init__(self) -> None:
    """Refuses numbers that are not those of pictures in [0, 1].

    Raises:
      UserError: If a mean is far off, or a spread is not above 0.
    """
    if max(map(abs, self.mean), default=0) > 2:
      raise UserError(
        f'mean is {self.mean} but pictures lie in [0, 1]; divide mean and std '
        'by 255'
      )
    if not all(spread > 0 for spread in self.std):
      raise UserError(f'std is {self.std} but must be above 0')

  def __call__(self, images: Images) -> jax.Array:
    """Maps float32[B, H, W, C] in [0, 1] to what the network expects.

    Raises:
      UserError: If the pictures have another number of channels.
    """
    channels = images.shape[-1]
    if not {len(self.mean), len(self.std)} <= {1, channels}:
      raise UserError(
        f'Normalise has {len(self.mean)} means and {len(self.std)} spreads '
        f'but the pictures have {channels} channels; give as many, or one'
      )
    return (images - jnp.asarray(self.mean)) / jnp.asarray(self.std)


@dataclasses.dataclass(frozen=True)
class Resized:
  """Preprocessing that resizes before another one; compared by value.

  For a network that takes larger or smaller pictures than those of the data.
  It is a part of the classifier, so gradients reach the pictures through it.

  Attributes:
    size: Height and width, in pixels, that the network takes.
    then: The network's own preprocessing.
  """

  size: int
  then: Callable[[Images], jax.Array]

  def __call__(self, images: Images) -> jax.Array:
    """Maps float32[B, H, W, C] to float32[B, size, size, C], bilinearly.

    Shrinking widens the filter, so that nothing is left out (antialiasing).
    """
    batch, _, _, channels = images.shape
    shape = (batch, self.size, self.size, channels)
    return self.then(jax.image.resize(images, shape, 'linear'))


def identity(images: Images) -> Images:
  """Preprocessing of a network that takes [0, 1] as it is."""
  return images


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['variables'],
  meta_fields=['apply', 'feature_map', 'preprocess', 'stochastic'],
)
@dataclasses.dataclass(frozen=True)
class Classifier:
  """Maps images in [0, 1] to logits; preprocessing happens inside.

  Build it with `from_linen`, `from_nnx` or `from_function`.

  Attributes:
    variables: The weights, a pytree of arrays.
    apply: `(variables, images) -> logits`, after preprocessing.
    feature_map: `(variables, images, names) -> dict`, or None if the network
      has no named layers.
    preprocess: From [0, 1] to what `apply` expects.
    stochastic: Whether two calls can differ; such a classifier is called with
      `keys`.
  """

  variables: PyTree
  apply: Callable[..., Logits]
  feature_map: Callable[..., dict[str, jax.Array]] | None = None
  preprocess: Callable[[Images], jax.Array] = identity
  stochastic: bool = False

  def __call__(self, images: Images, keys: Keys | None = None) -> Logits:
    """Computes logits.

    Args:
      images: [B, H, W, C], float32 in [0, 1], or uint8. The range is looked
        at in NumPy arrays alone.
      keys: key[B], for a stochastic classifier only.

    Returns:
      float32[B, K] (float64 of float64). Entries of their gradient by the
      images that are not finite are 0.

    Raises:
      UserError: If the pictures are something else, `apply` gives anything
        else, or `keys` are missing.
    """
    images = jnp.asarray(as_floating(images))
    logits = self.unchecked(finite_gradient(images), keys)
    # Pictures in float64 are somebody's check of a derivative.
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    return as_logits(logits, images.shape[0], dtype)

  def unchecked(self, images: Images, keys: Keys | None = None) -> jax.Array:
    """Computes what `apply` gives, whatever that is; see `__call__`."""
    extra = (
      (need_keys(keys, 'a stochastic classifier'),) if self.stochastic else ()
    )
    return self.apply(self.variables, self.preprocess(images), *extra)

  def features(
    self, images: Images, names: Sequence[str]
  ) -> dict[str, jax.Array]:
    """Computes the outputs of named layers.

    Args:
      images: float32[B, H, W, C] in [0, 1].
      names: Names of layers (Linen: submodules).

    Returns:
      One array a name.

    Raises:
      ValueError: If the network does not have one of the names.
    """
    if self.feature_map is None:
      raise ValueError(
        'this classifier was built without named layers; use from_linen, or '
        'pass feature_map to from_function'
      )
    shown = self.preprocess(jnp.asarray(as_floating(images)))
    return self.feature_map(self.variables, shown, tuple(names))


@dataclasses.dataclass(frozen=True)
class _LinenApply:
  """Static half of a Linen classifier; equal modules compare equal."""

  module: nn.Module
  call_arguments: tuple[tuple[str, Any], ...] = ()

  def __call__(self, variables: PyTree, images: Images) -> Logits:
    logits = self.module.apply(variables, images, **dict(self.call_arguments))
    return cast(jax.Array, logits)  # Nothing is mutable in inference.


@dataclasses.dataclass(frozen=True)
class _LinenFeatures:
  """Reads the outputs of named submodules of a Linen module."""

  module: nn.Module
  call_arguments: tuple[tuple[str, Any], ...] = ()

  def __call__(
    self, variables: PyTree, images: Images, names: tuple[str, ...]
  ) -> dict[str, jax.Array]:
    _, captured = self.module.apply(
      variables,
      images,
      capture_intermediates=lambda layer, method: layer.name in names,
      mutable=['intermediates'],
      **dict(self.call_arguments),
    )
    found = _outputs(captured.get('intermediates', {}))
    missing = [name for name in names if name not in found]
    if missing:
      raise ValueError(
        f'no layer called {", ".join(missing)} in '
        f'{type(self.module).__name__}; names are those of its submodules'
      )
    return {name: found[name] for name in names}


def _outputs(captured: dict[str, Any], name: str = '') -> dict[str, jax.Array]:
  """Flattens Flax's nested captures into {layer name: its first output}."""
  found: dict[str, jax.Array] = {}
  for key, value in captured.items():
    if key == '__call__':
      found[name] = value[0]
    else:
      found |= _outputs(value, key)
  return found


@jax.jit
def _logits(classifier: Classifier, images: Images) -> Logits:
  return classifier(as_float(images))


def predict(
  classifier: Any, images: np.ndarray, batch_size: int = 256
) -> np.ndarray:
  """Computes the logits of a whole set; one compilation whatever its size.

  Args:
    classifier: A deterministic classifier, or a function of images.
    images: [N, H, W, C], uint8 or floating in [0, 1].
    batch_size: Pictures at a time.

  Returns:
    float32[N, K].

  Raises:
    UserError: If the pictures or the outputs are of another shape or range.
    DataError: If memory does not suffice (names a smaller batch size), or a
      logit is not finite (names the picture).

  Warns:
    DoubtWarning: If the outputs look like something else than logits.
  """
  classifier = as_classifier(classifier)
  images = np.asarray(images)
  check_shape(images)
  if images.dtype != np.uint8:
    images = as_float(images)
  logits = map_batches(
    functools.partial(_logits, classifier),
    images,
    batch_size=min(batch_size, len(images)),
  )
  # Minus infinity is how a class is masked.
  broken = np.flatnonzero((np.isnan(logits) | np.isposinf(logits)).any(axis=-1))
  if broken.size:
    raise DataError(
      f'{broken.size} of {len(images)} pictures get logits that are not '
      f'finite, the first is row {broken[0]}; look at the weights'
    )
  for sentence in doubts(logits[:_NUM_DOUBTED]):
    warnings.warn(f'the classifier: {sentence}', DoubtWarning, stacklevel=2)
  return logits


def _is_module(value: Any, library: Literal['linen', 'nnx']) -> bool:
  """Tells whether a value is a module of Flax.

  Does not import Flax, which takes longer than all else here: whoever has a
  module has imported it.
  """
  imported = sys.modules.get(f'flax.{library}')
  return imported is not None and isinstance(value, imported.Module)


def _is_function(value: Any) -> bool:
  """Tells whether a value can be called with pictures as it is."""
  unfit = isinstance(value, type) or _is_module(value, 'linen')
  return callable(value) and not unfit


def from_linen(
  module: nn.Module,
  variables: PyTree,
  *,
  preprocess: Callable[[Images], jax.Array] = identity,
  call_arguments: Mapping[str, Any] | None = None,
) -> Classifier:
  """Wraps a Linen module in inference mode.

  Args:
    module: Called as `module.apply(variables, images, **call_arguments)`; with
      them it must be in inference mode (dropout off, stored BatchNorm
      statistics).
    variables: `{'params': ..., 'batch_stats': ...}`.
    preprocess: From [0, 1] to what the module expects.
    call_arguments: What else its `__call__` takes, such as
      `{'train': False}`; hashable values.

  Returns:
    A `Classifier` whose `features` go by the names of submodules.

  Raises:
    UserError: If this is no module, an argument of its call is missing or
      unknown, or the variables are something else.
  """
  if not _is_module(module, 'linen'):
    raise UserError(
      f'module is {_named(module)} but must be an instance of a Linen module; '
      'there are from_nnx and from_function, too'
    )
  given = dict(call_arguments or {})
  _check_call(module, given)
  names = list(variables) if isinstance(variables, Mapping) else []
  if not isinstance(variables, Mapping) or (names and 'params' not in names):
    raise UserError(
      f'variables are {_named(variables)} with the keys {names} but must be '
      "{'params': ...}, as module.init gives them"
    )
  arguments = tuple(sorted(given.items()))
  return Classifier(
    variables=variables,
    apply=_LinenApply(module, arguments),
    feature_map=_LinenFeatures(module, arguments),
    preprocess=preprocess,
  )


def _check_call(module: nn.Module, given: Mapping[str, Any]) -> None:
  """Refuses call arguments of a Linen module that are missing or unknown."""
  parameters = inspect.signature(type(module).__call__).parameters
  more = list(parameters.values())[2:]  # After self and the pictures.
  open_ended = [p for p in more if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
  missing = [
    p.name
    for p in more
    if p.default is p.empty and p not in open_ended and p.name not in given
  ]
  unknown = given.keys() - {p.name for p in more}
  if missing or (unknown and not open_ended):
    wrong = (
      f'requires {", ".join(missing)}'
      if missing
      else (f'takes no {", ".join(sorted(unknown))}')
    )
    takes = ', '.join(p.name for p in more) or 'nothing'
    raise UserError(
      f'{type(module).__name__}.__call__ {wrong}; besides pictures it takes '
      f"{takes}, given as from_linen(..., call_arguments={{'train': False}})"
    )


def _named(value: Any) -> str:
  """Says what a value is, for errors."""
  if isinstance(value, type):
    return f'the class {value.__name__}'
  return f'of type {type(value).__name__}'


@dataclasses.dataclass(frozen=True)
class _NnxApply:
  """Static half of an NNX classifier."""

  graphdef: Any

  def __call__(self, variables: PyTree, images: Images) -> Logits:
    from flax import nnx

    return nnx.merge(self.graphdef, variables)(images)


def from_nnx(
  model: nnx.Module,
  *,
  preprocess: Callable[[Images], jax.Array] = identity,
) -> Classifier:
  """Wraps an NNX model in inference mode; the model itself is not changed.

  The classifier holds the weights as they are now; train on and wrap again.

  Args:
    model: Called as `model(images)`.
    preprocess: From [0, 1] to what the model expects.

  Returns:
    A `Classifier`.

  Raises:
    UserError: If this is no NNX model.
  """
  if not _is_module(model, 'nnx'):
    raise UserError(
      f'model is {_named(model)} but must be an instance of an NNX module; '
      'there are from_linen and from_function, too'
    )
  from flax import nnx

  in_inference = nnx.view(
    model,
    deterministic=True,
    use_running_average=True,
    raise_if_not_found=False,
  )
  graphdef, variables = nnx.split(in_inference)
  return Classifier(
    variables=variables, apply=_NnxApply(graphdef), preprocess=preprocess
  )


def from_function(
  function: Callable[..., Logits],
  variables: PyTree = None,
  *,
  preprocess: Callable[[Images], jax.Array] = identity,
  feature_map: Callable[..., dict[str, jax.Array]] | None = None,
  stochastic: bool = False,
) -> Classifier:
  """Wraps a plain function.

  Args:
    function: `images -> logits`, or `(variables, images) -> logits` if
      `variables` are given; stochastic ones take `keys` last. Must be
      traceable by JAX.
    variables: Weights, a pytree of arrays; what else is in it, such as the
      activation functions of an Equinox module, is kept as it is. Arrays that
      `function` closes over work too, but are constants of every compilation.
    preprocess: From [0, 1] to what the function expects.
    feature_map: `(variables, images, names) -> dict`.
    stochastic: Whether two calls can differ.

  Returns:
    A `Classifier`.

  Raises:
    UserError: If `function` cannot be called.
  """
  if not _is_function(function):
    raise UserError(
      f'function is {_named(function)} but must be a function from images to '
      'logits; a Linen module and its variables go to from_linen'
    )
  apply = function if variables is not None else _WithoutVariables(function)
  leaves, structure = jax.tree.flatten(variables)
  others = tuple(None if _is_number(leaf) else leaf for leaf in leaves)
  if any(leaf is not None for leaf in others):
    apply = _WithOthers(apply, structure, others)
    variables = [leaf for leaf in leaves if _is_number(leaf)]
  return Classifier(
    variables=variables,
    apply=apply,
    feature_map=feature_map,
    preprocess=preprocess,
    stochastic=stochastic,
  )


@dataclasses.dataclass(frozen=True)
class _WithOthers:
  """Puts what is no array back into the variables of a function."""

  function: Callable[..., Logits]
  structure: Any
  others: tuple[Any, ...]

  def __call__(
    self, variables: Sequence[jax.Array], *arguments: jax.Array
  ) -> Logits:
    arrays = iter(variables)
    leaves = [next(arrays) if o is None else o for o in self.others]
    whole = jax.tree.unflatten(self.structure, leaves)
    return self.function(whole, *arguments)


def _is_number(leaf: Any) -> bool:
  """Tells what compiled functions take as an argument."""
  return hasattr(leaf, 'dtype') or isinstance(leaf, int | float)


def as_classifier(classifier: Any) -> Any:
  """Gives what the user calls a classifier as one that can be compiled.

  Args:
    classifier: A `Classifier` or other callable pytree, given back as it is;
      a plain function; or an NNX model, which is put into inference mode.

  Returns:
    A callable pytree.

  Raises:
    UserError: If it is none of them; says how to make one of it.
  """
  if _is_module(classifier, 'nnx'):
    return from_nnx(classifier)
  if isinstance(classifier, Classifier):
    return classifier
  if not _is_function(classifier):
    advice = 'wrap it with from_linen, from_nnx or from_function'
    raise UserError(
      f'the classifier is {_named(classifier)} but must be a Classifier or a '
      f'function from images to logits; {advice}'
    )
  if jax.tree_util.all_leaves([classifier]):
    stochastic = getattr(classifier, 'stochastic', False)
    return from_function(classifier, stochastic=stochastic)
  if all(map(_is_number, jax.tree.leaves(classifier))):
    return classifier
  # A module that is a pytree itself, such as those of Equinox.
  return from_function(_call, classifier)


def _call(module: Callable[..., Logits], images: Images) -> Logits:
  return module(images)


def as_pytree(function: Callable[..., Any]) -> Callable[..., Any]:
  """Makes any callable an argument that compiled functions accept.

  Args:
    function: A `Classifier` or other pytree, given back as it is, or a plain
      function.

  Returns:
    A callable pytree; that of a plain function has no leaves.
  """
  if jax.tree_util.all_leaves([function]):
    return jax.tree_util.Partial(function)
  return function


@dataclasses.dataclass(frozen=True)
class _WithoutVariables:
  """Drops the empty variables before a function that takes none."""

  function: Callable[..., Logits]

  def __call__(self, variables: PyTree, *arguments: jax.Array) -> Logits:
    return self.function(*arguments)
