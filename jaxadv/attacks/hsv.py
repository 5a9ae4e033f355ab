"""Random search over shifts of hue and saturation."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv.losses import succeeded
from jaxadv.norms import per_row
from jaxadv.perturbations.colour import shift_hsv
from jaxadv.types import (
  Attack,
  AttackResult,
  ClassifierLike,
  Images,
  Keys,
  Labels,
)
from jaxadv.utils import check_whole


class HSVState(NamedTuple):
  """State of the search, one row a picture.

  Attributes:
    keys: key[B].
    trial: int32[B], number of trials made.
    images: float32[B, H, W, 3], the last trial.
    done: bool[B], whether it is misclassified.
  """

  keys: Keys
  trial: jax.Array
  images: Images
  done: jax.Array


def hsv(num_trials: int = 1000) -> Attack:
  """Shifts hue and saturation of whole pictures until the classifier errs.

  A black-box attack that reads predicted classes only, one forward pass a
  trial. Trial i of n draws a hue shift from U(0, 1) and a saturation shift
  from U(-i/n, i/n), both for the whole picture, and applies them to the clean
  picture; its brightness stays.

  Args:
    num_trials: Largest number of trials, at least 1.

  Returns:
    An `Attack` on RGB pictures. A row without success holds its last trial.

  Raises:
    UserError: If `num_trials` is below 1.

  Departs from the paper: it leaves out pictures on which no trial succeeds.

  References:
    Hosseini and Poovendran, Semantic Adversarial Examples, 2018,
    https://arxiv.org/abs/1804.00499, section 3.
  """
  check_whole('num_trials', num_trials, 1)

  def init(
    keys: Keys, classifier: ClassifierLike, images: Images, labels: Labels
  ) -> HSVState:
    return HSVState(
      keys=keys,
      trial=jnp.zeros_like(labels),
      images=images,
      done=succeeded(classifier(images), labels),
    )

  def draw(key: jax.Array, trial: jax.Array) -> tuple[jax.Array, jax.Array]:
    key = jax.random.fold_in(key, trial)
    hue, saturation = jax.random.uniform(key, (2,), jnp.float32)
    return hue, (2 * saturation - 1) * trial / num_trials

  def step(
    classifier: ClassifierLike, images: Images, labels: Labels, state: HSVState
  ) -> HSVState:
    shifted = shift_hsv(images, *jax.vmap(draw)(state.keys, state.trial))
    success = succeeded(classifier(shifted), labels)
    return HSVState(
      keys=state.keys,
      trial=state.trial + ~state.done,
      images=jnp.where(per_row(state.done, images), state.images, shifted),
      done=state.done | success,
    )

  def finish(
    classifier: ClassifierLike, images: Images, labels: Labels, state: HSVState
  ) -> AttackResult:
    del classifier, images, labels  # Each trial judged its own picture.
    return AttackResult(state.images, state.done)

  return Attack(init, step, finish, max_steps=num_trials)
