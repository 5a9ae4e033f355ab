"""Noise that natural filters find in a picture, an attack without a model."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv.losses import succeeded
from jaxadv.norms import per_row
from jaxadv.perturbations.noise import filter_noise
from jaxadv.types import Attack, AttackResult


class NIState(NamedTuple):
  """State of the one-shot attack, one row a picture.

  Attributes:
    keys: key[B].
    done: bool[B], whether the clean picture is misclassified.
  """

  keys: jax.Array
  done: jax.Array


def ni(sign: int, *, filter: str = 'gaussian', gain: float = 1.0) -> Attack:
  """Adds (NI+) or subtracts (NI-) what a natural filter removes.

  A one-shot attack that does not look at the classifier, which only judges
  success; many pictures remain correctly classified.

  Args:
    sign: 1 for NI+, -1 for NI-.
    filter: 'gaussian', 'laplacian', 'integral', or 'mixed' (one drawn for
      each picture); see `filter_noise`.
    gain: Factor on the noise, at least 0.

  Returns:
    An `Attack`. A row without success holds the filtered picture.

  Raises:
    UserError: If the sign or filter is unknown, or gain is negative.

  References:
    Agarwal et al., Exploring Robustness Connection between Artificial and
    Natural Adversarial Examples, CVPR workshops 2022, section 3 (NI+, NI-).
  """
  perturb = filter_noise(sign, filter=filter, gain=gain)

  def init(keys, classifier, images, labels):
    return NIState(keys=keys, done=succeeded(classifier(images), labels))

  def step(classifier, images, labels, state):
    del classifier, images, labels  # One-shot: `finish` does the work.
    return state

  def finish(classifier, images, labels, state):
    noisy = perturb(state.keys, images)
    result = jnp.where(per_row(state.done, images), images, noisy)
    return AttackResult(result, succeeded(classifier(result), labels))

  return Attack(init, step, finish, max_steps=0)
