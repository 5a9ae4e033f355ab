"""Turning a weakness into a strength: how far a prediction is from others.

Attacked pictures are often unusual in one of two ways: noise changes their
prediction, or, where they were pushed deep into a class to withstand noise, it
takes many gradient steps to leave it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.classifier import as_pytree
from jaxadv.errors import UserError
from jaxadv.inputs import check_numbers
from jaxadv.losses import cross_entropy, logit_of, margin
from jaxadv.metrics import roc
from jaxadv.norms import per_row
from jaxadv.types import (
  Batch,
  ClassifierLike,
  Detector,
  checked_batches,
  make_detector,
  picture_keys,
)
from jaxadv.utils import check_range


class Criteria(NamedTuple):
  """The three measures of pictures; all are larger for attacked ones.

  Attributes:
    noise: float32[B] in [0, 2], C1: the L1 distance of the softmax outputs
      with and without Gaussian noise.
    targeted: float32[B], C2t: gradient steps towards a random other class
      until the prediction changes.
    untargeted: float32[B], C2u: gradient steps away from the predicted class
      until the prediction changes.
  """

  noise: jax.Array
  targeted: jax.Array
  untargeted: jax.Array


class TWSState(NamedTuple):
  """What the detector knows of clean pictures.

  Attributes:
    clean: `Criteria` of the N clean training pictures, each sorted.
    centre: float32[3], means of what stands in for the criteria in the
      surrogate, over the same pictures.
    spread: float32[3], their standard deviations.
  """

  clean: Criteria
  centre: jax.Array
  spread: jax.Array


class Tuned(NamedTuple):
  """Settings that `tune` found; `tws(**tuned._asdict())` takes them.

  Attributes:
    sigma: Standard deviation of the noise, in image units.
    targeted_lr: Step size of C2t.
    untargeted_lr: Step size of C2u.
  """

  sigma: float
  targeted_lr: float
  untargeted_lr: float


def tws(
  sigma: float = 0.01,
  targeted_lr: float = 5e-4,
  untargeted_lr: float = 1.0,
  *,
  radius: float = 0.5,
  targeted_cap: int = 200,
  untargeted_cap: int = 1000,
) -> Detector:
  """Makes the detector of three criteria, each against that of clean pictures.

  A criterion becomes the share of the clean training pictures with a lower
  value, ties broken at random, so that it is uniform in [0, 1) for clean
  pictures. The score is the largest of them. The paper's settings, which
  depend on data and network, so `tune` them:

    | network              | sigma | targeted_lr | untargeted_lr | radius |
    | CIFAR-10, VGG19      | 0.01  | 0.0005      | 1             | 0.5    |
    | ImageNet, ResNet101  | 0.1   | 0.005       | 0.1           | 0.03   |
    | ImageNet, Inception  | 0.1   | 0.005       | 3             | 0.03   |

  A score costs two forward passes and one gradient a step, until the slowest
  row of the batch is done: at most `targeted_cap + untargeted_cap`.

  Args:
    sigma: Standard deviation of the noise of C1 in image units, above 0. The
      noisy picture is not clipped.
    targeted_lr: What the gradient of the cross-entropy is multiplied by in a
      step of C2t, above 0.
    untargeted_lr: The same for C2u.
    radius: Largest change of a pixel in image units, in (0, 1].
    targeted_cap: Number of steps at which C2t ends; 0 leaves C2t out.
    untargeted_cap: Number of steps at which C2u ends; 0 leaves C2u out.

  Returns:
    A `Detector` for deterministic classifiers of at least 2 classes. It
    learns from the clean rows of `train` only. Scores lie in [0, 1). The
    surrogate is differentiable: the largest of C1 (with the noise of the key)
    and, for the counts, of the difference of the logits that a step works on
    (the predicted class against the random one, or against the best other),
    each minus its mean over clean pictures and divided by its standard
    deviation. It is about 0 for clean pictures, and its zero is no threshold.

  Raises:
    UserError: If a hyperparameter lies outside its range, or (by `fit`) there
      is no clean picture. `fit` raises DataError if a criterion is NaN.

  Departs from the paper: one score in place of three thresholds. Its
  thresholds at 10 % false positives are 0.009 (C1) and 119 steps (C2t) for
  CIFAR-10, 1.90 and 35 for ResNet101; its released code uses no C2u.

  References:
    Hu et al., A New Defense Against Adversarial Images: Turning a Weakness
    into a Strength, 2019, https://arxiv.org/abs/1910.07629, section 4
    (criteria C1, C2t, C2u).
  """
  for name, value in (
    ('sigma', sigma),
    ('targeted_lr', targeted_lr),
    ('untargeted_lr', untargeted_lr),
  ):
    check_range(name, value, 0, float('inf'), open_low=True)
  check_range('radius', radius, 0, 1, open_low=True)
  check_range('targeted_cap', targeted_cap, 0, float('inf'))
  check_range('untargeted_cap', untargeted_cap, 0, float('inf'))
  measure = functools.partial(
    criteria,
    sigma=sigma,
    targeted_lr=targeted_lr,
    untargeted_lr=untargeted_lr,
    radius=radius,
    targeted_cap=targeted_cap,
    untargeted_cap=untargeted_cap,
  )
  active = np.array([True, targeted_cap > 0, untargeted_cap > 0])

  @jax.jit
  def learnt(keys, classifier, images):
    measured = measure(keys, classifier, images)
    return measured, _stand_ins(keys, classifier, images, sigma)

  def fit(
    key: jax.Array,
    classifier: Any,
    train: Iterable[Batch],
    valid: Iterable[Batch],
  ) -> TWSState:
    del valid  # Nothing is trained that would have to be stopped.
    classifier = as_pytree(classifier)
    found = []
    for batch in train:
      clean = np.asarray(batch.mask) & (np.asarray(batch.kind) == 0)
      if clean.any():
        keys = picture_keys(key, batch.source)
        values = learnt(keys, classifier, batch.images)
        found.append(jax.tree.map(lambda x, rows=clean: x[rows], values))
    if not found:
      raise UserError(
        'there are no clean pictures to train on; tws compares with clean '
        'pictures, so give rows of kind 0'
      )
    measured, stand_ins = jax.tree.map(
      lambda *parts: np.concatenate(parts), *found
    )
    for values in (*measured, stand_ins):
      check_numbers(values, 'criteria of clean pictures')
    # A criterion that never varies must not divide by 0.
    spread = np.maximum(stand_ins.std(axis=0), 1e-6)
    return TWSState(
      clean=jax.tree.map(lambda x: jnp.sort(x), measured),
      centre=jnp.asarray(stand_ins.mean(axis=0)),
      spread=jnp.asarray(spread),
    )

  def score(
    keys: jax.Array, classifier: Any, state: TWSState, images: jax.Array
  ) -> jax.Array:
    shares = clean_shares(keys, state, measure(keys, classifier, images))
    return jnp.max(jnp.stack(shares, axis=-1)[:, active], axis=-1)

  def surrogate(
    keys: jax.Array, classifier: Any, state: TWSState, images: jax.Array
  ) -> jax.Array:
    values = _stand_ins(keys, classifier, images, sigma)
    return jnp.max(((values - state.centre) / state.spread)[:, active], axis=-1)

  return make_detector(fit, score, surrogate)


def criteria(
  keys: jax.Array,
  classifier: ClassifierLike,
  images: jax.Array,
  *,
  sigma: float | jax.Array,
  targeted_lr: float | jax.Array,
  untargeted_lr: float | jax.Array,
  radius: float | jax.Array,
  targeted_cap: int,
  untargeted_cap: int,
) -> Criteria:
  """Measures pictures; pure, jittable.

  Args:
    keys: key[B], one a picture: of its noise and its class to go to.
    classifier: A deterministic classifier of at least 2 classes.
    images: float32[B, H, W, C] in [0, 1].
    sigma: As of `tws`; may be traced, like the following three.
    targeted_lr: As of `tws`.
    untargeted_lr: As of `tws`.
    radius: As of `tws`.
    targeted_cap: As of `tws`; with 0, C2t is 0 everywhere.
    untargeted_cap: As of `tws`; with 0, C2u is 0 everywhere.

  Returns:
    The three criteria. A count of `cap` says that the prediction did not
    change in fewer steps, NaN that a logit was NaN.

  Raises:
    UserError: If the classifier has fewer than 2 classes.
  """
  logits = classifier(images)
  predicted = jnp.argmax(logits, axis=-1)
  count = functools.partial(
    _count_steps, classifier, images, predicted, radius=radius
  )
  targets = _other_classes(keys, logits, predicted)
  return Criteria(
    noise=_noise_distance(keys, classifier, images, logits, sigma),
    targeted=count(targets, -targeted_lr, cap=targeted_cap),
    untargeted=count(predicted, untargeted_lr, cap=untargeted_cap),
  )


def clean_shares(
  keys: jax.Array, state: TWSState, measured: Criteria
) -> Criteria:
  """Turns criteria into shares of clean pictures with a lower value.

  Args:
    keys: key[B], which break ties.
    state: What `fit` gave.
    measured: Criteria of B pictures.

  Returns:
    `Criteria` in [0, 1); each is uniform if the pictures are like the clean
    ones that the detector was fitted on. Equal values count half on average,
    and so does one more picture that stands for the one looked at. NaN stays.
  """
  draw = lambda key: jax.random.uniform(_named(key, 'ties'), (3,), jnp.float32)
  ties = jax.vmap(draw)(keys)

  def share(clean, values, tie):
    below = jnp.searchsorted(clean, values, side='left')
    not_above = jnp.searchsorted(clean, values, side='right')
    rank = (below + tie * (not_above - below + 1)) / (len(clean) + 1)
    # It would be sorted behind all others, as if it were the largest.
    return jnp.where(jnp.isnan(values), jnp.nan, rank)

  return Criteria(
    *(
      share(clean, values, ties[:, i])
      for i, (clean, values) in enumerate(
        zip(state.clean, measured, strict=True)
      )
    )
  )


def tune(
  key: jax.Array,
  classifier: Any,
  valid: Iterable[Batch],
  *,
  sigmas: Sequence[float] = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2),
  targeted_lrs: Sequence[float] = (5e-4, 2e-3, 5e-3, 2e-2, 1e-1),
  untargeted_lrs: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0),
  radius: float = 0.5,
  targeted_cap: int = 200,
  untargeted_cap: int = 1000,
) -> Tuned:
  """Finds the settings with which each criterion tells attacks best.

  Each is chosen by itself, by the AUC of its criterion; of equal ones, and of
  a criterion that is left out, the first. One compilation for all.

  Args:
    key: One key.
    classifier: As of `criteria`.
    valid: Batches of clean pictures (kind 0) and attacked ones.
    sigmas: To choose `sigma` from, above 0.
    targeted_lrs: To choose `targeted_lr` from, above 0.
    untargeted_lrs: To choose `untargeted_lr` from, above 0.
    radius: As of `tws`.
    targeted_cap: As of `tws`.
    untargeted_cap: As of `tws`.

  Returns:
    The settings.

  Raises:
    UserError: If there are no clean or no attacked pictures, a list is empty,
      or a value not above 0.
    DataError: If a criterion is NaN.
  """
  choices = {
    'sigma': sigmas,
    'targeted_lr': targeted_lrs,
    'untargeted_lr': untargeted_lrs,
  }
  for name, values in choices.items():
    if not len(values):
      raise UserError(f'there is no {name} to choose from; give at least one')
    check_range(name, values, 0, float('inf'), open_low=True)
  classifier = as_pytree(classifier)
  measure = jax.jit(
    functools.partial(
      criteria,
      radius=radius,
      targeted_cap=targeted_cap,
      untargeted_cap=untargeted_cap,
    )
  )
  # One run tries a value of each; the shorter lists repeat their last.
  num_runs = max(len(values) for values in choices.values())
  runs = [
    {
      name: float(values[min(i, len(values) - 1)])
      for name, values in choices.items()
    }
    for i in range(num_runs)
  ]
  kinds = []
  found: list[list[Criteria]] = [[] for _ in runs]
  for batch in checked_batches(valid, 'valid'):
    mask = np.asarray(batch.mask)
    keys = picture_keys(key, batch.source)
    kinds.append(np.asarray(batch.kind)[mask])
    for parts, run in zip(found, runs, strict=True):
      measured = measure(keys, classifier, batch.images, **run)
      parts.append(jax.tree.map(lambda x, mask=mask: x[mask], measured))
  attacked = np.concatenate(kinds) != 0 if kinds else np.zeros(0, bool)
  if not attacked.any() or attacked.all():
    raise UserError(
      f'there are {attacked.sum()} attacked pictures of {attacked.size} to '
      'tune on; give some clean and some attacked ones'
    )
  aucs = np.array(
    [
      [roc.auc(np.concatenate(c), attacked) for c in zip(*parts, strict=True)]
      for parts in found
    ]
  )
  best = aucs.argmax(axis=0)
  return Tuned(
    *(runs[row][name] for row, name in zip(best, choices, strict=True))
  )


def _named(key: jax.Array, use: str) -> jax.Array:
  """A picture's key for one of its uses."""
  return jax.random.fold_in(key, ('noise', 'class', 'ties').index(use))


def _other_classes(
  keys: jax.Array, logits: jax.Array, predicted: jax.Array
) -> jax.Array:
  """Draws a class for every row, other than the predicted one."""
  num_classes = logits.shape[-1]
  if num_classes < 2:
    raise UserError(
      f'the classifier has {num_classes} class but tws goes to another one; '
      'give a classifier of at least 2 classes'
    )
  draw = lambda key: jax.random.randint(
    _named(key, 'class'), (), 0, num_classes - 1, jnp.int32
  )
  other = jax.vmap(draw)(keys)
  return other + (other >= predicted)


def _noise_distance(
  keys: jax.Array,
  classifier: ClassifierLike,
  images: jax.Array,
  logits: jax.Array,
  sigma: float | jax.Array,
) -> jax.Array:
  """C1, differentiable with respect to the images."""
  draw = lambda key: jax.random.normal(
    _named(key, 'noise'), images.shape[1:], jnp.float32
  )
  noisy = classifier(images + sigma * jax.vmap(draw)(keys))
  return jnp.sum(
    jnp.abs(jax.nn.softmax(noisy) - jax.nn.softmax(logits)), axis=-1
  )


def _count_steps(
  classifier: ClassifierLike,
  images: jax.Array,
  predicted: jax.Array,
  labels: jax.Array,
  lr: float | jax.Array,
  *,
  radius: float | jax.Array,
  cap: int,
) -> jax.Array:
  """C2: steps of size `lr` up the loss of `labels` until the label changes."""
  low = jnp.maximum(images - radius, 0)
  high = jnp.minimum(images + radius, 1)

  def unfinished(carry):
    step, _, _, done, _ = carry
    return (step < cap) & ~jnp.all(done)

  def advance(carry):
    step, moved, count, done, broken = carry

    def loss(moved):
      logits = classifier(moved)
      return jnp.sum(cross_entropy(logits, labels)), logits

    # The pass that gives the gradient also judges the step before it.
    gradient, logits = jax.grad(loss, has_aux=True)(moved)
    # A NaN is the largest to argmax: the label seems to have changed.
    broken |= jnp.any(jnp.isnan(logits), axis=-1) & ~done
    done |= jnp.argmax(logits, axis=-1) != predicted
    further = jnp.clip(moved + lr * gradient, low, high)
    moved = jnp.where(per_row(done, moved), moved, further)
    return step + 1, moved, count + ~done, done, broken

  rows = predicted.shape
  no = jnp.zeros(rows, bool)
  start = (0, images, jnp.zeros(rows, jnp.int32), no, no)
  _, _, count, _, broken = jax.lax.while_loop(unfinished, advance, start)
  return jnp.where(broken, jnp.nan, count.astype(jnp.float32))


def _stand_ins(
  keys: jax.Array,
  classifier: ClassifierLike,
  images: jax.Array,
  sigma: float | jax.Array,
) -> jax.Array:
  """Differentiable values that rise and fall with the criteria: [B, 3]."""
  logits = classifier(images)
  predicted = jnp.argmax(logits, axis=-1)
  targets = _other_classes(keys, logits, predicted)
  ahead = logit_of(logits, predicted)
  return jnp.stack(
    [
      _noise_distance(keys, classifier, images, logits, sigma),
      ahead - logit_of(logits, targets),
      -margin(logits, predicted),
    ],
    axis=-1,
  )
