"""What an evaluation refuses or doubts, each with what to do instead."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.errors import TracerArrayConversionError
from numpy.typing import ArrayLike

from jaxadv import losses
from jaxadv.attacks.drive import Composite
from jaxadv.errors import DataError, DoubtWarning, UserError
from jaxadv.inputs import as_float, as_labels, check_shape, doubts
from jaxadv.types import Attack, Images, Labels, Logits, bound, picture_keys

_UNDECLARED = (
  'the classifier gives other logits for the same pictures when it is called '
  'again; switch dropout and other noise off, or declare it with '
  'from_function(..., stochastic=True) and draw from the keys that it then gets'
)
# Pictures that a classifier is tried on, and the noise added to half of them.
_NUM_TRIED = 4
# Pictures among which these are looked for; a whole set may fill the memory.
_NUM_SEARCHED = 512
_NOISE = 8 / 255
# Levels up to this one alone are what scikit-learn's digits have, or 0 and 1.
_DARK = 16


class AttackInputs(NamedTuple):
  """What is attacked; NumPy arrays.

  Attributes:
    images: [N, H, W, C], uint8 or float32 in [0, 1].
    labels: int32[N], the true classes.
    source: int32[N], ids of the pictures.
    targets: int32[N], the classes to reach, or None for an untargeted attack.
  """

  images: np.ndarray
  labels: np.ndarray
  source: np.ndarray
  targets: np.ndarray | None

  @property
  def aims(self) -> np.ndarray:
    """The labels that the attack is given."""
    return self.labels if self.targets is None else self.targets


def attack_inputs(
  images: ArrayLike,
  labels: ArrayLike,
  source: ArrayLike | None = None,
  targets: ArrayLike | None = None,
) -> AttackInputs:
  """Refuses pictures and numbers that cannot be attacked.

  Args:
    images: [N, H, W, C], uint8 or floating in [0, 1].
    labels: [N].
    source: [N], or None for 0 to N - 1.
    targets: [N], or None.

  Returns:
    The same as NumPy arrays.

  Raises:
    UserError: If one has the wrong shape, type or range.
    DataError: If a picture holds NaN or infinity.
  """
  array = np.asarray(images)
  check_shape(array)
  if array.dtype != np.uint8:
    array = as_float(array)
  elif 0 < array.max() <= _DARK:
    warnings.warn(
      f'the pictures are uint8 but hold no value above {array.max()}, nearly '
      'black; scale them to 255, or to [0, 1] as floats',
      DoubtWarning,
      stacklevel=3,
    )
  num = len(array)
  host = lambda name, values: as_labels(np.asarray(values), num, name)
  return AttackInputs(
    array,
    host('labels', labels),
    host('source', np.arange(num) if source is None else source),
    None if targets is None else host('targets', targets),
  )


def check_attack(attack: Any) -> None:
  """Refuses what is no attack.

  Args:
    attack: What the user gave.

  Raises:
    UserError: If it is neither an `Attack` nor a `Composite`.
  """
  if isinstance(attack, Attack | Composite):
    return
  advice = 'build one, as in pgd(linf_ball(8 / 255))'
  if isinstance(attack, str):
    advice = f'build it first, as attacks.make({attack!r}, ...) does'
  elif callable(attack):
    name = getattr(attack, '__name__', type(attack).__name__)
    advice = f'if {name} makes attacks, call it first'
  raise UserError(
    f'attack is {attack!r:.80} but must be an Attack or Composite; {advice}'
  )


def check_targets(inputs: AttackInputs, targeted: bool) -> None:
  """Refuses targets that do not fit the attack or the labels.

  Args:
    inputs: What is attacked.
    targeted: Whether the attack is.

  Raises:
    UserError: If targets are missing, not wanted, or the true label.
  """
  labels, targets = inputs.labels, inputs.targets
  if targets is None:
    if targeted:
      raise UserError(
        'the attack is targeted but targets are None; give the classes to '
        'reach as targets, and the true classes as labels'
      )
    return
  if not targeted:
    raise UserError(
      'targets are given but the attack is untargeted; build it with '
      'targeted=True or leave the targets out'
    )
  same = targets == labels
  if same.any():
    row = np.argmax(same)
    raise UserError(
      f'the target in row {row} is {targets[row]}, the true label; give '
      'another class to reach'
    )


def check_outputs(classifier: Any, key: jax.Array, inputs: AttackInputs) -> Any:
  """Refuses what shows when a classifier is traced once; computes nothing.

  Args:
    classifier: A classifier.
    key: One key.
    inputs: What is attacked.

  Returns:
    Its jaxpr, whose output is float32[1, K].

  Raises:
    UserError: If it fails on such pictures, gives no logits, or lacks a class
      of the labels or targets.
  """
  shape = inputs.images.shape[1:]
  picture = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  # A new function every time: JAX would remember the trace of an old one.
  forward = lambda key, images: bound(classifier, key[None], 0)(images)
  try:
    jaxpr = jax.make_jaxpr(forward)(key, picture)
  except (UserError, DataError, MemoryError):
    raise
  except Exception as error:  # Whatever a user's function raises.
    from flax.errors import InvalidRngError, ModifyScopeVariableError

    reason = next(iter(str(error).strip().splitlines()), '')
    advice = ''
    if isinstance(error, TracerArrayConversionError):
      advice = '; it must be traceable by JAX: use jax.numpy in it, not numpy'
    elif isinstance(error, ModifyScopeVariableError | InvalidRngError):
      advice = (
        '; it is in train mode: put it into inference mode, as '
        "from_linen(..., call_arguments={'train': False}) does"
      )
    raise UserError(
      f'the classifier fails on pictures of {"x".join(map(str, shape))} '
      f'(height, width, channels): {type(error).__name__}: {reason}{advice}'
    ) from error
  num_classes = jaxpr.out_avals[0].shape[1]
  as_labels(inputs.labels, len(inputs.labels), 'labels', num_classes)
  if inputs.targets is not None:
    as_labels(inputs.targets, len(inputs.labels), 'targets', num_classes)
  return jaxpr


def check_classifier(
  classifier: Any, key: jax.Array, inputs: AttackInputs
) -> int:
  """Refuses a classifier that cannot be attacked, and warns of doubtful ones.

  Args:
    classifier: A classifier.
    key: One key.
    inputs: What is attacked.

  Returns:
    Its number of classes.

  Raises:
    UserError: As `check_outputs`, or if it is random and does not say so.
    DataError: If it gives NaN.

  Warns:
    DoubtWarning: Of what `try_classifier` finds.
  """
  first = check_outputs(classifier, key, inputs)
  if not getattr(classifier, 'stochastic', False):
    second = check_outputs(classifier, key, inputs)
    # Functions inside are printed with addresses that mean nothing.
    text = lambda traced: re.sub('0x[0-9a-f]+', '', str(traced.jaxpr))
    constants = zip(first.consts, second.consts, strict=False)
    if text(first) != text(second) or not all(
      one is other or np.array_equal(_numbers(one), _numbers(other))
      for one, other in constants
    ):
      raise UserError(_UNDECLARED)
  found = try_classifier(classifier, key, inputs)
  if 'random_outputs' in found:
    raise UserError(found['random_outputs'])
  warn(found.values())
  return first.out_avals[0].shape[1]


def _numbers(constant: Any) -> np.ndarray:
  if jax.dtypes.issubdtype(constant.dtype, jax.dtypes.prng_key):
    constant = jax.random.key_data(constant)
  return np.asarray(constant)


def _logits(
  classifier: Any,
  key: jax.Array,
  images: Images,
  labels: Labels,
  source: jax.Array,
) -> Logits:
  """Gives what a classifier returns, without what a `Classifier` mends."""
  del labels
  raw = getattr(classifier, 'unchecked', classifier)
  declared = getattr(classifier, 'stochastic', False)
  extra = (picture_keys(key, source),) if declared else ()
  return raw(images, *extra).astype(jnp.float32)


class _Seen(NamedTuple):
  """What a few pictures show, a row each; see `try_classifier`."""

  logits: Any
  broken: Any
  flat: Any
  vanishing: Any


@jax.jit
def _look(
  classifier: Any,
  key: jax.Array,
  images: Images,
  labels: Labels,
  source: jax.Array,
) -> _Seen:
  """Gives logits, and what the gradients of margin and cross-entropy are."""
  logits, pullback = jax.vjp(
    lambda images: _logits(classifier, key, images, labels, source), images
  )

  cotangents = [
    jax.grad(lambda logits, loss=loss: jnp.sum(loss(logits, labels)))(logits)
    for loss in (losses.margin, losses.cross_entropy)
  ]
  # One after the other, so that the backward pass is compiled once.
  slope, steepness = jax.lax.map(
    lambda cotangent: pullback(cotangent)[0], jnp.stack(cotangents)
  )
  rest = range(1, images.ndim)
  flat = (slope == 0).all(axis=rest)
  return _Seen(
    logits,
    ~jnp.isfinite(slope).all(axis=rest),
    flat,
    ~flat & (steepness == 0).all(axis=rest),
  )


@jax.jit
def _look_without_gradient(*given: Any) -> _Seen:
  logits = _logits(*given)
  unknown = jnp.zeros(len(logits), bool)
  return _Seen(logits, unknown, unknown, unknown)


def try_classifier(
  classifier: Any, key: jax.Array, inputs: AttackInputs
) -> dict[str, str]:
  """Says what shows when a classifier is called on a few pictures.

  They are the first ones and those of the first hundreds with the most black
  and white values, as they are and with noise.

  Args:
    classifier: A classifier.
    key: One key.
    inputs: What is attacked.

  Returns:
    Sentences by name: 'broken_gradients' if its gradient is not finite,
    'zero_gradients' and 'vanishing_gradients' if it is 0, or that of the
    cross-entropy alone, at half of the pictures, 'batch_dependent' if its
    logits depend on what else is in the batch, 'random_outputs' if they differ
    from call to call without a declaration, and 'doubtful_outputs' as
    `jaxadv.inputs.doubts`.

  Raises:
    DataError: If it gives NaN or infinity.
  """
  some = inputs.images[:_NUM_SEARCHED]
  white = 255 if some.dtype == np.uint8 else 1
  extreme = (some == 0) | (some == white)
  order = np.argsort(-extreme.sum(axis=(1, 2, 3)), kind='stable')
  half = _NUM_TRIED // 2
  rows = np.resize(np.append(np.arange(len(order))[:half], order), _NUM_TRIED)
  pictures = as_float(inputs.images[rows])
  noise = np.random.default_rng(0).uniform(-_NOISE, _NOISE, pictures.shape)
  noisy = np.clip(pictures + noise, 0, 1).astype(np.float32)
  both = np.tile(rows, 2)

  def given(*parts: np.ndarray) -> tuple[Any, ...]:
    tried = np.concatenate(parts)
    return classifier, key, tried, inputs.labels[both], inputs.source[both]

  look = _look
  try:
    jax.eval_shape(look, *given(pictures, noisy))
  except Exception:  # It has no gradient, and black-box attacks want none.
    look = _look_without_gradient

  def call(*parts: np.ndarray) -> _Seen:
    return _Seen(*map(np.asarray, look(*given(*parts))))

  found = {}
  seen = call(pictures, noisy)
  logits = seen.logits
  # Minus infinity is how a class is masked.
  broken = (np.isnan(logits) | np.isposinf(logits)).any(axis=1)
  if broken.any():
    first = np.argmax(broken)
    added = f' with noise of {_NOISE:.3f} added' if first >= _NUM_TRIED else ''
    raise DataError(
      f'the classifier gives NaN or infinity for the picture in row '
      f'{both[first]}{added}; check its weights, preprocessing and dtype'
    )
  tried = f'of the {len(logits)} pictures tried'
  if seen.broken.any():
    found['broken_gradients'] = (
      f'its gradient is NaN or infinite at {seen.broken.sum()} {tried}, such '
      f'as row {both[np.argmax(seen.broken)]}; such entries count as 0, which '
      'makes attacks weaker: mend it, as '
      'where(x > 0, sqrt(where(x > 0, x, 1)), 0) mends a square root'
    )
  if seen.flat.mean() >= 0.5:
    found['zero_gradients'] = (
      f'its gradient is 0 at {seen.flat.sum()} {tried}, so that attacks which '
      'follow it do nothing; give the step that hides it a stand-in with bpda, '
      'or attack by queries with square'
    )
  if seen.vanishing.mean() >= 0.5:
    found['vanishing_gradients'] = (
      f'the cross-entropy has no gradient at {seen.vanishing.sum()} {tried}, '
      "as the logits lie so far apart; use loss='margin' or 'dlr'"
    )
  if sentences := doubts(logits):
    found['doubtful_outputs'] = '; '.join(sentences)
  # In other company and in another place of the batch.
  elsewhere = call(1 - pictures, pictures).logits
  if _differ(logits[:_NUM_TRIED], elsewhere[_NUM_TRIED:]):
    if _differ(logits, call(pictures, noisy).logits):
      found['random_outputs'] = _UNDECLARED
    else:
      found['batch_dependent'] = (
        'the logits of a picture depend on the others in its batch or on its '
        'place there, and results on the batch size; let it normalise with '
        'stored statistics, as in inference, and draw noise from the keys of '
        'a stochastic classifier'
      )
  return found


def _differ(logits: np.ndarray, others: np.ndarray) -> bool:
  """Tells whether logits differ by more than the order of additions does."""
  with np.errstate(invalid='ignore'):  # Infinities may be equal.
    far = np.abs(logits - others) > 1e-3 * (1 + np.abs(logits))
  return bool(np.any(far))


def guessing(correct: np.ndarray, num_classes: int) -> list[str]:
  """Says that a classifier is no better than guessing, if so.

  Args:
    correct: bool[N], whether clean pictures are classified correctly; fewer
      than twenty say nothing.
    num_classes: Number of classes.

  Returns:
    A sentence, or none.
  """
  chance, num = 1 / num_classes, len(correct)
  # What guessing hardly ever exceeds: one time in twenty.
  usual = chance + 1.64 * (chance * (1 - chance) / num) ** 0.5
  if num < 20 or correct.mean() > usual:
    return []
  return [
    f'it is right on {correct.mean():.1%} of the clean pictures, which is not '
    f'clearly better than guessing among {num_classes} classes; check the '
    'labels and the preprocessing'
  ]


def warn(sentences: Iterable[str], stacklevel: int = 5) -> None:
  """Warns of doubts about a classifier, in the name of who called for them."""
  for sentence in sentences:
    warnings.warn(
      f'the classifier: {sentence}', DoubtWarning, stacklevel=stacklevel
    )
