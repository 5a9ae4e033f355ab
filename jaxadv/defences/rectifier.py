"""Rectifier: overwrites the pixels that a detector objects to.

The detector comes as a callable `images -> float32[B]`, the logit of
"attacked", differentiable and row by row; a pytree keeps its weights out of
compiled programs. Suspects are whole pixels, bool[B, H, W].
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.attacks.adaptive import Score, bpda
from jaxadv.classifier import Classifier, as_pytree, from_function, identity
from jaxadv.data.batching import map_batches
from jaxadv.errors import UserError
from jaxadv.inputs import (
  as_float,
  as_floating,
  as_uint8,
  check_numbers,
  finite_gradient,
)
from jaxadv.norms import Radius, per_row, total
from jaxadv.training import (
  Task,
  TrainConfig,
  classification,
  fit,
  gather_images,
  linen_apply,
)
from jaxadv.types import (
  ClassifierLike,
  Images,
  Keys,
  Logits,
  PyTree,
  Scores,
  bound,
  picture_keys,
)
from jaxadv.utils import check_range

if TYPE_CHECKING:
  import flax.linen as nn

MaskRule = Literal['threshold', 'fraction']
Combine = Literal['mean', 'vote']

# Of the classifier on masked pictures. The paper gives none: our choice.
FINE_TUNING = TrainConfig(
  num_epochs=10,
  batch_size=128,
  optimizer='sgd:momentum=0.9',
  learning_rate=1e-3,
  schedule='constant',
)


def salient_pixels(
  score: Score,
  images: Images,
  alpha: Radius,
  *,
  mask_rule: MaskRule = 'threshold',
) -> jax.Array:
  """Finds the pixels that the detector's loss depends on most.

  How much is G, the absolute gradient of the detector's cross-entropy towards
  "attacked" with respect to the picture, added up over channels.

  Args:
    score: The detector.
    images: float32[B, H, W, C] in [0, 1].
    alpha: In [0, 1]; a scalar or float32[B], traced or not.
    mask: 'threshold' as the paper prints it, G > alpha (max G - min G) +
      min G, so that a larger alpha finds fewer; or 'fraction', the share
      alpha of the pixels that have the largest G (rounded to a whole number
      of them), so that it finds more, as the paper's text says.

  Returns:
    bool[B, H, W].

  Raises:
    UserError: If alpha lies outside [0, 1] or `mask` is unknown.

  Departs from the paper: in colour, whole pixels are found, by the sum over
  channels.

  References:
    Li et al., Are L2 Adversarial Examples Intrinsically Different?, 2020,
    section 3 (rectifier).
  """
  check_range('alpha', alpha, 0, 1)
  _check_choice('mask_rule', mask_rule, MaskRule)
  # The gradient of the score itself: that of the cross-entropy is the same
  # times a positive number a row, which changes neither reading but vanishes
  # in float32 where the detector is sure.
  images = jnp.asarray(as_floating(images))
  gradient = jax.grad(lambda x: jnp.sum(score(finite_gradient(x))))(images)
  gradient = jnp.abs(gradient)
  channels = [gradient[..., i] for i in range(gradient.shape[-1])]
  size = functools.reduce(operator.add, channels)
  alpha = jnp.broadcast_to(jnp.asarray(alpha, jnp.float32), len(images))
  if mask_rule == 'threshold':
    low = jnp.min(size, axis=(1, 2))
    high = jnp.max(size, axis=(1, 2))
    return size > per_row(alpha * (high - low) + low, size)
  return _largest(size, alpha)


def random_pixels(keys: Keys, images: Images, fraction: Radius) -> jax.Array:
  """Draws pixels at random: the control of `suspects`.

  Args:
    keys: key[B], one a picture.
    images: [B, H, W, C]; only the shape counts.
    fraction: Share of the pixels, in [0, 1]; a scalar or float32[B], traced
      or not.

  Returns:
    bool[B, H, W], exactly that share, rounded to a whole number of pixels.

  Raises:
    UserError: If the fraction lies outside [0, 1].
  """
  check_range('fraction', fraction, 0, 1)
  shape = images.shape[1:3]
  draw = lambda key: jax.random.uniform(key, shape, jnp.float32)
  size = jax.vmap(draw)(keys)
  return _largest(size, jnp.asarray(fraction, jnp.float32))


def _largest(size: jax.Array, fraction: jax.Array) -> jax.Array:
  """Marks a share of the pixels of each row; of equals, the first."""
  flat = size.reshape(len(size), -1)
  rank = jnp.argsort(jnp.argsort(flat, axis=1, descending=True), axis=1)
  wanted = jnp.round(fraction * flat.shape[1])
  return (rank < jnp.reshape(wanted, (-1, 1))).reshape(size.shape)


def zeroed(images: Images, pixels: jax.Array) -> Images:
  """Blackens pixels: float32[B, H, W, C] and bool[B, H, W] to images."""
  return jnp.where(pixels[..., None], 0, images)


def share(pixels: jax.Array) -> jax.Array:
  """Share of a picture's pixels that is marked: bool[B, H, W] to float32[B]."""
  return jnp.mean(pixels, axis=(1, 2), dtype=jnp.float32)


class Masked(NamedTuple):
  """Pictures with pixels replaced.

  Attributes:
    images: float32[B, H, W, C] in [0, 1].
    replaced: bool[B, H, W]; `share` of it is the realised fraction.
  """

  images: Images
  replaced: jax.Array


def mask_pixels(
  keys: Keys,
  images: Images,
  salient_pixels: jax.Array,
  probability: float = 0.5,
) -> Masked:
  """Replaces suspects, each with some probability, by noise.

  The noise is normal with mean and standard deviation of all values of the
  picture, a draw for each channel, clipped to [0, 1] and rounded to 1/255.

  Args:
    keys: key[B], one a picture.
    images: float32[B, H, W, C] in [0, 1].
    suspects: bool[B, H, W].
    probability: In [0, 1].

  Returns:
    The pictures, and which pixels were replaced.

  Raises:
    UserError: If the probability lies outside [0, 1].

  Departs from the paper: it prints mean and standard deviation in each
  other's place, and draws in [0, 255].

  References:
    Li et al., 2020, section 3 (rectifier).
  """
  check_range('probability', probability, 0, 1)
  images = jnp.asarray(as_floating(images))
  shape = images.shape[1:]

  def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    key_chosen, key_noise = jax.random.split(key)
    # Of this type, or 64-bit JAX draws other numbers.
    chance = jnp.asarray(probability, jnp.float32)
    chosen = jax.random.bernoulli(key_chosen, chance, shape[:2])
    return chosen, jax.random.normal(key_noise, shape, jnp.float32)

  chosen, noise = jax.vmap(draw)(keys)
  num_values = images[0].size
  mean = per_row(total(images) / num_values, images)
  spread = jnp.sqrt(total((images - mean) ** 2) / num_values)
  noise = jnp.clip(mean + per_row(spread, images) * noise, 0, 1)
  noise = jnp.round(noise * 255) * np.float32(1 / 255)
  replaced = salient_pixels & chosen
  return Masked(jnp.where(replaced[..., None], noise, images), replaced)


@dataclasses.dataclass(frozen=True)
class _Rectified:
  """Static half of `rectified`; equal settings compare equal."""

  mask_rule: MaskRule
  probability: float
  num_draws: int
  combine: Combine

  def __call__(
    self, parts: tuple[Any, Any, Any], images: Images, keys: Keys
  ) -> Logits:
    classifier, score, alpha = parts
    fixed = jax.lax.stop_gradient(images)
    found = salient_pixels(score, fixed, alpha, mask_rule=self.mask_rule)
    through = bpda(self._images)

    # The gradient of the detector is taken once for all draws.
    def draw(turn: jax.Array) -> jax.Array:
      drawn = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, turn)
      return classifier(through(images, found, drawn))

    logits = jax.lax.map(draw, jnp.arange(self.num_draws))
    if self.combine == 'mean':
      return logits.mean(axis=0)
    votes = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1]).sum(axis=0)
    return votes + jax.nn.softmax(logits).mean(axis=0) / 2

  def _images(self, images: Images, found: jax.Array, keys: Keys) -> Images:
    return mask_pixels(keys, images, found, self.probability).images


def rectified(
  classifier: ClassifierLike,
  score: Score,
  alpha: Radius,
  *,
  mask_rule: MaskRule = 'threshold',
  probability: float = 0.5,
  num_draws: int = 1,
  combine: Combine = 'mean',
) -> Classifier:
  """Puts the rectifier before a classifier; every picture goes through it.

  Its gradient is what an attacker who knows the defence would use: which
  pixels are suspect is constant, and a replaced pixel passes the gradient on
  as if it had not been replaced (BPDA). With several draws, 'mean' averages
  over the randomness as well (EOT); it is `attacks.eot` for the price of one
  gradient of the detector.

  Args:
    classifier: A deterministic one, such as one fine-tuned by `fine_tune`.
    score: The detector.
    alpha: As in `suspects`, a scalar.
    mask: As in `suspects`.
    probability: As in `mask_pixels`.
    num_draws: Draws of every picture, one after the other, at least 1.
    combine: 'mean' of the logits over the draws, to attack; or 'vote', to
      judge: the number of draws that predict a class plus half its mean
      probability, which so decides between equals.

  Returns:
    A stochastic `Classifier`: it is called with `keys`, key[B], and equal keys
    give equal logits.

  Raises:
    UserError: If a setting lies outside its range.

  Example:
    >>> judge = rectified(classifier, score, 0.5, num_draws=10, combine='vote')
    >>> predicted = judge(images, keys).argmax(-1)

  References:
    Li et al., 2020, section 3; Athalye et al., Obfuscated Gradients Give a
    False Sense of Security, 2018, https://arxiv.org/abs/1802.00420, sections
    4.1 and 4.2.
  """
  check_range('alpha', alpha, 0, 1)
  check_range('probability', probability, 0, 1)
  check_range('num_draws', num_draws, 1, float('inf'))
  _check_choice('mask_rule', mask_rule, MaskRule)
  _check_choice('combine', combine, Combine)
  return from_function(
    _Rectified(mask_rule, probability, num_draws, combine),
    (as_pytree(classifier), as_pytree(score), jnp.asarray(alpha)),
    stochastic=True,
  )


def guarded(
  classifier: ClassifierLike, repaired: Classifier, score: Score
) -> Classifier:
  """Makes the whole pipeline: flagged pictures are repaired, others are not.

  Args:
    classifier: The classifier of what is not flagged.
    repaired: That of what is flagged, from `rectified` or another defence.
    score: Positive where a picture is flagged (its threshold subtracted).

  Returns:
    A stochastic `Classifier`. A row's gradient is that of the classifier that
    it went to; its logits are NaN if its score is.

  References:
    Li et al., 2020, section 3.
  """
  parts = (as_pytree(classifier), as_pytree(repaired), as_pytree(score))
  return from_function(_guarded_logits, parts, stochastic=True)


def _guarded_logits(
  parts: tuple[Any, Any, Score], images: Images, keys: Keys
) -> Logits:
  classifier, repaired, score = parts
  scores = score(jax.lax.stop_gradient(images))[:, None]
  logits = bound(repaired, keys, 0)(images)
  logits = jnp.where(scores > 0, logits, classifier(images))
  # Nobody knows whether to repair it: not to flag it would let it through.
  return jnp.where(jnp.isnan(scores), jnp.nan, logits)


@functools.partial(jax.jit, static_argnames=('mask_rule', 'probability'))
def _copies(
  keys: Keys,
  score: Any,
  images: Images,
  alpha: jax.Array,
  *,
  mask_rule: MaskRule,
  probability: float,
) -> tuple[jax.Array, jax.Array, jax.Array, Scores]:
  images = as_float(images)
  found = salient_pixels(score, images, alpha, mask_rule=mask_rule)

  def copy(keys: Keys) -> tuple[jax.Array, jax.Array]:
    masked = mask_pixels(keys, images, found, probability)
    return jnp.round(masked.images * 255).astype(jnp.uint8), masked.replaced

  copies, replaced = jax.lax.map(copy, keys)
  return copies, share(found), jax.vmap(share)(replaced), score(images)


class MaskedCopies(NamedTuple):
  """Several masked versions of every picture of a set.

  Attributes:
    images: uint8[D, N, H, W, C].
    suspect: float32[N], share of the pixels that are suspect.
    replaced: float32[D, N], share that was replaced.
  """

  images: np.ndarray
  suspect: np.ndarray
  replaced: np.ndarray


def masked_copies(
  key: jax.Array,
  score: Score,
  images: np.ndarray,
  alpha: float,
  *,
  mask_rule: MaskRule = 'threshold',
  probability: float = 0.5,
  num_copies: int = 5,
  batch_size: int = 128,
) -> MaskedCopies:
  """Masks every picture of a set several times, for `fine_tune`.

  Args:
    key: One key.
    score: The detector.
    images: [N, H, W, C], uint8 or floating in [0, 1].
    alpha: As in `suspects`.
    mask: As in `suspects`.
    probability: As in `mask_pixels`.
    num_copies: D, at least 1; the suspects of all copies are the same.
    batch_size: Pictures at a time; changes no draw.

  Returns:
    The copies and the realised fractions.

  Raises:
    UserError: If a setting or a picture lies outside its range or there are no
      pictures.
    DataError: If memory does not suffice (names a smaller batch size), or a
      score is NaN.
  """
  check_range('num_copies', num_copies, 1, float('inf'))
  check_range('alpha', alpha, 0, 1)
  if not len(images):
    raise UserError('images is empty; at least one picture is needed')
  images = as_uint8(images)
  score = as_pytree(score)
  copy_keys = jax.random.split(key, num_copies)

  def make(rows: np.ndarray, images: Images) -> tuple[jax.Array, ...]:
    # A key for each copy of each picture.
    keys = jax.vmap(picture_keys, in_axes=(0, None))(
      copy_keys, jnp.asarray(rows)
    )
    made = _copies(
      keys, score, images, alpha, mask_rule=mask_rule, probability=probability
    )
    copies, suspect, replaced, scores = made
    return copies.swapaxes(0, 1), suspect, replaced.swapaxes(0, 1), scores

  copies, suspect, replaced, scores = map_batches(
    make,
    np.arange(len(images)),
    images,
    batch_size=min(batch_size, len(images)),
  )
  check_numbers(scores, 'scores of pictures to mask')
  return MaskedCopies(copies.swapaxes(0, 1), suspect, replaced.swapaxes(0, 1))


class Held(NamedTuple):
  """Pictures by which `fine_tune` picks an epoch; it learns from none of them.

  Attributes:
    masked: uint8[V, H, W, C], masked pictures.
    labels: int32[V], true classes of the originals.
    clean: uint8[W, H, W, C], clean pictures as they are.
    clean_labels: int32[W].
    keeps: Share of the clean ones that has to be classified correctly.
  """

  masked: np.ndarray
  labels: np.ndarray
  clean: np.ndarray
  clean_labels: np.ndarray
  keeps: float


def _selection_metric(
  num_masked: int, keeps: float
) -> Callable[..., jax.Array]:
  """Prefers whoever keeps clean pictures, of these who recovers most."""

  def metric(measured: dict[str, jax.Array]) -> jax.Array:
    accuracy = measured['accuracy']
    kept = accuracy[num_masked:].mean()
    recovered = accuracy[:num_masked].mean()
    return jnp.where(kept >= keeps, 1 + recovered, kept)

  return metric


def _as_deployed(module: nn.Module) -> Callable[..., Any]:
  """Like `linen_apply`, in inference mode also while it is trained.

  Statistics of masked pictures in BatchNorm alone make a network forget clean
  ones.
  """
  apply = linen_apply(module)
  return lambda variables, inputs, train, key: apply(
    variables, inputs, False, key
  )


@functools.cache
def _task(
  module: nn.Module,
  preprocess: Callable[[jax.Array], jax.Array],
  num_masked: int,
  keeps: float,
) -> Task:
  task = classification(
    lambda key, data, member: data['start'],
    _as_deployed(module),
    gather_images(preprocess=preprocess),
  )
  return (
    task._replace(selection_metric=_selection_metric(num_masked, keeps))
    if num_masked
    else task
  )


def fine_tune(
  key: jax.Array,
  module: nn.Module,
  variables: PyTree,
  masked: np.ndarray,
  labels: np.ndarray,
  clean: np.ndarray,
  clean_labels: np.ndarray,
  config: TrainConfig = FINE_TUNING,
  *,
  held: Held | None = None,
  preprocess: Callable[[jax.Array], jax.Array] = identity,
  mesh: jax.sharding.Mesh | None = None,
  checkpoint_dir: str | os.PathLike[str] | None = None,
) -> PyTree:
  """Trains a classifier further, on masked and clean pictures one to one.

  BatchNorm keeps its statistics and nothing is dropped out: with statistics of
  masked pictures it would be another network on clean ones.

  Args:
    key: One key.
    module: The classifier's Linen module.
    variables: Its weights, where the training starts.
    masked: uint8[D, N, H, W, C], `MaskedCopies.images`; like `clean`, also
      floating in [0, 1], which is rounded.
    labels: int32[N], true classes of the originals.
    clean: uint8[M, H, W, C]; an epoch goes through them as often as it takes
      to make D x N, or through the first D x N of more.
    clean_labels: int32[M].
    config: Epochs, batch size, optimizer and schedule.
    held: Validation pictures. The weights are then those of the epoch that
      recovers most masked ones while it keeps enough clean ones, or that keeps
      most where none keeps enough; without them, those of the last epoch.
    preprocess: The classifier's own; hashable.
    mesh: Splits batches over its devices.
    checkpoint_dir: Folder to resume from after an interruption.

  Returns:
    The new variables, like the old.

  Raises:
    UserError: If the pictures and labels do not go together.
    DataError: If the loss is not finite or memory does not suffice.

  Departs from the paper, which gives no settings of this training: copies,
  mixture and `FINE_TUNING` are our choice.

  References:
    Li et al., 2020, section 3 (f_rec).
  """
  masked, clean = as_uint8(masked, 'masked'), as_uint8(clean, 'clean')
  num_copies, num = masked.shape[:2]
  if num != len(labels) or len(clean) != len(clean_labels) or not len(clean):
    raise UserError(
      f'{num} masked pictures have {len(labels)} labels and {len(clean)} clean '
      f'ones {len(clean_labels)}; give a label a picture and at least one '
      'clean picture'
    )
  num_masked = num_copies * num
  images = [masked.reshape(-1, *clean.shape[1:]), clean]
  classes = [np.tile(labels, num_copies), clean_labels]
  judging: tuple[int, float] = (0, 0.0)
  if held is not None:
    images += [as_uint8(held.masked), as_uint8(held.clean)]
    classes += [held.labels, held.clean_labels]
    judging = len(held.labels), held.keeps
  rows = np.arange(num_masked)
  num_learnt = num_masked + len(clean)
  result = fit(
    key,
    _task(module, preprocess, *judging),
    {
      'images': np.concatenate(images),
      'labels': np.concatenate(classes),
      'start': variables,
    },
    np.concatenate([rows, num_masked + rows % len(clean)]),
    None
    if held is None
    else np.arange(num_learnt, sum(len(part) for part in images)),
    config,
    mesh=mesh,
    checkpoint_dir=checkpoint_dir,
  )
  found = result.state.variables
  return {name: found[name] for name in variables}


def _check_choice(name: str, value: str, choices: Any) -> None:
  allowed = choices.__args__
  if value not in allowed:
    raise UserError(
      f'{name} is {value!r} but must be one of {", ".join(allowed)}'
    )
