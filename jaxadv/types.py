"""Names and shapes that every part of jaxadv shares.

A unit (an attack, a detector) is a factory that closes over its
hyperparameters and returns one of the named tuples below; what it fits travels
as a pytree of arrays.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import contracts
from jaxadv.errors import UserError
from jaxadv.inputs import (
  as_float,
  as_key,
  as_labels,
  as_logits,
  check_numbers,
  check_result,
  check_shape,
  finite_gradient,
)

PyTree: TypeAlias = Any

# B pictures. To a type checker all of these are arrays; what is more is said
# where they are used.
Images: TypeAlias = jax.Array
"""float32[B, H, W, C] in [0, 1]."""
Labels: TypeAlias = jax.Array
"""int32[B], classes: the true ones, or those that an attack is to reach."""
Keys: TypeAlias = jax.Array
"""key[B], a random key for each picture; see `picture_keys`."""
Logits: TypeAlias = jax.Array
"""float32[B, K], one for each class."""
Scores: TypeAlias = jax.Array
"""float32[B], higher means more likely attacked."""

# Names the draws of a stochastic classifier among those of a picture's key.
_CLASSIFIER = 0x636C6173


class Batch(NamedTuple):
  """Pictures with what is known of them; the last batch of a set is padded.

  Attributes:
    images: float32[B, H, W, C] in [0, 1] (uint8 while a set is in storage).
    labels: int32[B], true classes.
    kind: int32[B], 0 for clean, else the index of the kind of attack plus one.
    source: int32[B], the id of the original picture; a clean picture and all
      its attacked versions share it.
    mask: bool[B], False in rows that are padding.
  """

  images: Images
  labels: Labels
  kind: jax.Array
  source: jax.Array
  mask: jax.Array


class AttackResult(NamedTuple):
  """What an attack returns.

  Attributes:
    images: float32[B, H, W, C] in [0, 1]. A row without success holds the last
      iterate for a budget attack, the clean image for a minimal-norm attack.
    success: bool[B], judged on `images` as returned.
  """

  images: Images
  success: jax.Array


class ClassifierLike(Protocol):
  """Anything that maps float32[B, H, W, C] in [0, 1] to logits [B, K]."""

  def __call__(self, images: Images, /) -> Logits:
    """Gives the logits, float32[B, K]."""


class Init(Protocol):
  """The first function of an `Attack`."""

  def __call__(
    self,
    keys: Keys,
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    /,
  ) -> Any:
    """Gives the first state."""


class Step(Protocol):
  """The repeated function of an `Attack`."""

  def __call__(
    self,
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    state: Any,
    /,
  ) -> Any:
    """Gives the next state; `images` are the clean ones."""


class Finish(Protocol):
  """The last function of an `Attack`."""

  def __call__(
    self,
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    state: Any,
    /,
  ) -> AttackResult:
    """Gives what a state leads to."""


@dataclasses.dataclass(frozen=True)
class Attack:
  """An attack in the form that every driver runs; built by a factory.

  Not a named tuple like the other types: `jax.jit(attack)` needs a weak
  reference to it, which tuples refuse.

  Attributes:
    init: `(keys, classifier, images, labels) -> state`. The state is a named
      tuple whose leaves all have the leading axis B; `done`, bool[B], is
      among them, and so is each row's own step counter if it needs one.
    step: `(classifier, images, labels, state) -> state`. A row that is done
      does not change.
    finish: `(classifier, images, labels, state) -> AttackResult`.
    max_steps: The number of calls of `step` after which the attack ends; 0
      for a one-shot attack, whose `finish` does the work.
    targeted: Whether labels name the classes to reach.

  The functions raise `UserError` for other shapes and dtypes, when they are
  traced. They call `classifier(images)`, also where the classifier is
  stochastic: whoever drives them binds it to fresh keys first, see `bound`.
  """

  init: Init
  step: Step
  finish: Finish
  max_steps: int
  targeted: bool = False

  def __post_init__(self) -> None:
    """Lets each function check, when it is traced, what it takes and gives."""
    replace = functools.partial(object.__setattr__, self)  # It is frozen.
    replace('init', _on_init(self.init))
    replace('step', _on_step(self.step))
    replace('finish', _on_finish(self.finish))

  def __call__(
    self,
    keys: Keys,
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    done: jax.Array | None = None,
  ) -> AttackResult:
    """Drives the attack to its end; a pure function, made to be jitted.

    Args:
      keys: key[B], one a picture; see `picture_keys`.
      classifier: The classifier under attack.
      images: [B, H, W, C], float32 in [0, 1], or uint8. Inside `jit` the
        dtype alone is known, so that values outside [0, 1] go unnoticed;
        `evaluate` looks at them.
      labels: int32[B], the true classes, or the classes to reach if the
        attack is targeted.
      done: bool[B], rows that nobody will read, or None; the loop does not
        wait for them.

    Returns:
      The attacked images and which rows succeeded.

    Raises:
      UserError: If keys, images or labels have another dtype or shape.
    """
    keys, images, labels = as_arguments(keys, images, labels)
    state = self.start(keys, classifier, images, labels, done)

    def unfinished(carry: tuple[Any, Any]) -> jax.Array:
      step, state = carry
      return (step < self.max_steps) & ~jnp.all(state.done)

    def advance(carry: tuple[Any, Any]) -> tuple[Any, Any]:
      step, state = carry
      now = bound(classifier, keys, step + 1)
      return step + 1, self.next_state(now, images, labels, state)

    if self.max_steps == 1:  # A loop costs more than it could save.
      _, state = advance((0, state))
    elif self.max_steps:
      _, state = jax.lax.while_loop(unfinished, advance, (0, state))
    end = bound(classifier, keys, self.max_steps + 1)
    return self.result(end, images, labels, state)

  def start(
    self,
    keys: Keys,
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    done: jax.Array | None = None,
  ) -> Any:
    """Gives the first state, in which the rows of `done` rest; see `init`."""
    state = self.init(keys, bound(classifier, keys, 0), images, labels)
    # Where JAX has 64 bits, a default dtype has them, and draws other numbers.
    state = jax.tree.map(_narrow, state)
    if done is None or not self.max_steps:
      return state
    return state._replace(done=state.done | done)

  def next_state(
    self,
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    state: Any,
  ) -> Any:
    """Gives the state after a step, in the dtypes of the one before."""
    stepped = self.step(classifier, images, labels, state)
    same = lambda new, old: (
      new if new.dtype == old.dtype else new.astype(old.dtype)
    )
    return jax.tree.map(same, stepped, state)

  def result(
    self,
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    state: Any,
  ) -> AttackResult:
    """Gives what a state leads to, with pictures as float32."""
    return jax.tree.map(_narrow, self.finish(classifier, images, labels, state))


def _on_init(init: Init) -> Init:
  @functools.wraps(init)
  def checked(
    keys: Keys, classifier: ClassifierLike, images: Images, labels: Labels
  ) -> Any:
    contracts.check_arguments(keys, images, labels)
    state = init(keys, classifier, images, labels)
    contracts.check_state(state, images.shape[0])
    return state

  return checked


def _on_step(step: Step) -> Step:
  @functools.wraps(step)
  def checked(
    classifier: ClassifierLike, images: Images, labels: Labels, state: Any
  ) -> Any:
    stepped = step(classifier, images, labels, state)
    contracts.check_step(stepped, state)
    return stepped

  return checked


def _on_finish(finish: Finish) -> Finish:
  @functools.wraps(finish)
  def checked(
    classifier: ClassifierLike, images: Images, labels: Labels, state: Any
  ) -> AttackResult:
    result = finish(classifier, images, labels, state)
    if not isinstance(result, AttackResult):
      raise UserError(
        f'finish gives a {type(result).__name__} but must give an AttackResult'
      )
    contracts.check_result(*result, images)
    return result

  return checked


def _narrow(leaf: jax.Array) -> jax.Array:
  """Takes float64 and int64 to 32 bits; the rest stays."""
  narrow = {'float64': jnp.float32, 'int64': jnp.int32}.get(str(leaf.dtype))
  return leaf if narrow is None else leaf.astype(narrow)


def bound(
  classifier: ClassifierLike, keys: Keys, turn: int | jax.Array
) -> ClassifierLike:
  """Gives a classifier as attacks see it, with the draws of one step.

  What is wrong with its outputs is said here, and entries of its gradient
  that are not finite become 0.

  Args:
    classifier: Any classifier.
    keys: key[B], one a picture.
    turn: Number of the step, int32 or int32[B]; each has draws of its own.

  Returns:
    A classifier that gives the same logits, float32, at every call.

  Raises:
    UserError: When it is traced and gives no logits.
  """
  if not getattr(classifier, 'stochastic', False):
    return _seen(classifier)

  def draw(key: jax.Array, turn: jax.Array) -> jax.Array:
    # The first fold keeps it apart from what attacks draw from the same key.
    return jax.random.fold_in(jax.random.fold_in(key, _CLASSIFIER), turn)

  drawn = jax.vmap(draw)(keys, jnp.broadcast_to(turn, keys.shape))
  return _seen(lambda images: cast(Any, classifier)(images, drawn))


def _seen(classify: Callable[[jax.Array], Any]) -> ClassifierLike:
  return lambda images: as_logits(
    classify(finite_gradient(images)), images.shape[0]
  )


def as_arguments(
  keys: Keys, images: Any, labels: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gives the arguments of an attack as every driver takes them.

  Args:
    keys: key[B].
    images: [B, H, W, C], uint8 or floating in [0, 1].
    labels: Integers [B].

  Returns:
    key[B], float32[B, H, W, C] and int32[B].

  Raises:
    UserError: If one of them has another dtype, shape or range.
    DataError: If a picture holds NaN.
  """
  images = jnp.asarray(as_float(images))
  check_shape(images)
  num = images.shape[0]
  if getattr(keys, 'dtype', None) == jnp.uint32 and keys.ndim == 2:
    keys = jax.random.wrap_key_data(keys)  # The older ones.
  is_key = isinstance(keys, jax.Array) and jax.dtypes.issubdtype(
    keys.dtype, jax.dtypes.prng_key
  )
  if not is_key or keys.shape != (num,):
    given = f'{keys!s:.40}'
    if hasattr(keys, 'dtype'):
      given = f'{keys.dtype}{list(keys.shape)}'
    raise UserError(
      f'keys are {given} but must be one key a picture, key[{num}]; make them '
      f'with picture_keys(jax.random.key(0), jnp.arange({num}))'
    )
  return keys, images, jnp.asarray(as_labels(labels, num))


def picture_keys(key: jax.Array, source: jax.Array) -> jax.Array:
  """Gives every picture its own key, whatever batch it is in.

  Args:
    key: One key.
    source: int32[B], ids of the pictures.

  Returns:
    key[B], `key` folded with each id.

  Raises:
    UserError: If `key` or `source` is something else.
  """
  source = jnp.asarray(source)
  if source.ndim != 1:
    raise UserError(
      f'source has the shape {source.shape} but must be one id a picture, as '
      'jnp.arange(64)'
    )
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(as_key(key), source)


class Fit(Protocol):
  """What learns from batches, of a detector, an identifier or a purifier."""

  def __call__(
    self,
    key: jax.Array,
    classifier: Any,
    train: Iterable[Batch],
    valid: Iterable[Batch],
    /,
  ) -> PyTree:
    """Gives the state, arrays only."""


class OnPictures(Protocol):
  """What a fitted unit does with pictures; the three aliases below.

  `classifier` and `state` are those that `Fit` was given and gave; `keys`,
  key[B], are None only where nothing is random.
  """

  def __call__(
    self,
    keys: Keys | None,
    classifier: Any,
    state: PyTree,
    images: Images,
    /,
  ) -> jax.Array:
    """Gives a row for each picture."""


ScorePictures: TypeAlias = OnPictures
"""Gives `Scores`."""
IdentifyPictures: TypeAlias = OnPictures
"""Gives float32[B, 1 + N], logits of clean and of each of N kinds."""
PurifyPictures: TypeAlias = OnPictures
"""Gives `Images`."""


class Detector(NamedTuple):
  """Tells attacked pictures from clean ones; built by a factory.

  Factories put it together with `make_detector`, so that `fit`, `score` and
  `surrogate` take pictures as uint8 or floating in [0, 1].

  Attributes:
    fit: `(key, classifier, train, valid) -> state`, arrays only; `train` and
      `valid` are re-readable iterables of `Batch`.
    score: `(keys, classifier, state, images) -> float32[B]`, higher means
      more likely attacked.
    surrogate: A differentiable stand-in for `score`, needed where `score` has
      no useful gradient.
  """

  fit: Fit
  score: ScorePictures
  surrogate: ScorePictures | None = None


class Identifier(NamedTuple):
  """Tells clean pictures and kinds of attack apart; built by a factory.

  Put together with `make_identifier`, see `Detector`.

  Attributes:
    fit: As of `Detector`.
    identify: `(keys, classifier, state, images) -> float32[B, 1 + N]`, logits
      of clean and of each of the N kinds.
  """

  fit: Fit
  identify: IdentifyPictures


class Purifier(NamedTuple):
  """Takes attacks out of pictures before they are classified.

  Put together with `make_purifier`, see `Detector`.

  Attributes:
    fit: As of `Detector`; one that learns nothing gives `()`.
    purify: `(keys, classifier, state, images) -> float32[B, H, W, C]` in
      [0, 1]; `keys`, key[B], are None only where nothing is random.
  """

  fit: Fit
  purify: PurifyPictures


def make_detector(
  fit: Fit,
  score: ScorePictures,
  surrogate: ScorePictures | None = None,
) -> Detector:
  """Puts a detector together that takes pictures as people have them.

  Args:
    fit: As of `Detector`, for batches that `checked_batches` gives.
    score: As of `Detector`, for float32 images in [0, 1].
    surrogate: Likewise, or None.

  Returns:
    A `Detector` whose functions take uint8, or floating in [0, 1]. They raise
    `UserError` for pictures that are something else or do not fit the
    network, and outside of `jit` `DataError` for scores that are NaN.
  """
  return Detector(
    _on_batches(fit),
    _on_pictures(score, 'scores'),
    surrogate and _on_pictures(surrogate, 'scores'),
  )


def make_identifier(fit: Fit, identify: IdentifyPictures) -> Identifier:
  """Puts an identifier together, as `make_detector` does detectors.

  Args:
    fit: As of `Identifier`.
    identify: As of `Identifier`.

  Returns:
    The identifier.
  """
  return Identifier(_on_batches(fit), _on_pictures(identify, 'logits'))


def make_purifier(fit: Fit, purify: PurifyPictures) -> Purifier:
  """Puts a purifier together, as `make_detector` does detectors.

  Args:
    fit: As of `Purifier`.
    purify: As of `Purifier`; what it gives is checked outside of `jit`.

  Returns:
    The purifier.
  """
  return Purifier(_on_batches(fit), _on_pictures(purify, None))


def checked_batches(batches: Iterable[Batch], name: str) -> Iterable[Batch]:
  """Gives batches as what learns from them reads them.

  Args:
    batches: Images uint8 or floating in [0, 1]; an iterator, which could be
      read only once, is read into memory.
    name: What the user called them.

  Returns:
    A re-readable iterable of batches with float32 images and a bool mask;
    what has an attribute `checked` comes back as it is. It
    raises, where it is read, `UserError` for columns of other lengths or
    pictures that are something else, and `DataError` for NaN in a picture.
  """
  if getattr(batches, 'checked', False):
    return batches
  if isinstance(batches, Iterator):
    batches = list(batches)
  return _CheckedBatches(batches, name)


@dataclasses.dataclass(frozen=True)
class _CheckedBatches:
  """See `checked_batches`."""

  batches: Iterable[Batch]
  name: str
  checked = True

  def __iter__(self) -> Iterator[Batch]:
    for number, batch in enumerate(self.batches):
      name = f'images of batch {number} of {self.name}'
      images = as_float(batch.images, name)
      check_shape(images, name)
      lengths = {field: len(c) for field, c in batch._asdict().items()}
      if len(set(lengths.values())) > 1:
        raise UserError(
          f'batch {number} of {self.name} has columns of the lengths {lengths} '
          'but must have a row for each picture'
        )
      yield batch._replace(images=images, mask=batch.mask.astype(bool))


def _on_batches(fit: Fit) -> Fit:
  @functools.wraps(fit)
  def checked(
    key: jax.Array,
    classifier: Any,
    train: Iterable[Batch],
    valid: Iterable[Batch],
  ) -> PyTree:
    train, valid = (
      checked_batches(batches, name)
      for batches, name in ((train, 'train'), (valid, 'valid'))
    )
    from flax.errors import ScopeParamShapeError

    try:
      return fit(key, classifier, train, valid)
    except ScopeParamShapeError as error:
      raise UserError(_misfit('the pictures to fit on', error)) from error

  return checked


def _on_pictures(function: OnPictures, gives: str | None) -> OnPictures:
  """Checks pictures before a function and what it gives, None for pictures."""

  @functools.wraps(function)
  def checked(
    keys: Keys | None, classifier: Any, state: PyTree, images: Images
  ) -> jax.Array:
    images = jnp.asarray(as_float(images))
    check_shape(images)
    from flax.errors import ScopeParamShapeError

    try:
      found = function(keys, classifier, state, images)
    except ScopeParamShapeError as error:
      what = f'pictures of the shape {images.shape[1:]}'
      raise UserError(_misfit(what, error)) from error
    found = found.astype(np.float32)  # Other dtypes come with the classifier.
    if gives is not None:
      check_numbers(found, gives)
    elif not isinstance(found, jax.core.Tracer):
      rows = np.arange(len(found))
      check_result(found, rows, 'the purifier', 'look at its weights')
    return found

  return checked


def _misfit(what: str, error: Exception) -> str:
  """Says that weights are for pictures of another shape."""
  reason = str(error).partition(' (https')[0].rstrip('.')
  return (
    f'{what} do not fit the network, which was made for another number of '
    f'channels or another size: {reason}'
  )
