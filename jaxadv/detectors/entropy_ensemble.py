"""Two detectors, of which the more certain one decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from jaxadv.classifier import as_pytree
from jaxadv.errors import DataError, UserError
from jaxadv.types import (
  Batch,
  Detector,
  Images,
  Keys,
  PyTree,
  ScorePictures,
  Scores,
  checked_batches,
  make_detector,
  picture_keys,
)

# Temperatures beyond this make all probabilities one half, or 0 and 1.
_LARGEST_LOG_TEMPERATURE = 7.0


class EnsembleState(NamedTuple):
  """What an ensemble has learnt.

  Attributes:
    states: Those of the first and of the second detector.
    temperatures: float32[2], by which their logits are divided; ones leave
      them as they are.
  """

  states: tuple[PyTree, PyTree]
  temperatures: jax.Array


def more_certain(first: jax.Array, second: jax.Array) -> jax.Array:
  """Picks of two logits the one whose probability has less binary entropy.

  Binary entropy falls with the distance of the logit from 0, so the farther
  one is picked: to the last bit, where entropies would round to the same.

  Args:
    first: float32[B], logits of the first detector; it wins ties.
    second: float32[B].

  Returns:
    float32[B], NaN where one of them is.
  """
  farther = jnp.abs(second) > jnp.abs(first)
  return jnp.where(farther | jnp.isnan(second), second, first)


def certain_sum(first: jax.Array, second: jax.Array) -> jax.Array:
  """Adds two logits: positive exactly where `more_certain` of them is.

  Whichever is farther from 0 gives the sum its sign. Unlike the rule, the sum
  does not jump, so gradients can follow it.

  Args:
    first: float32[B]; it wins ties, which the rule itself stands in for.
    second: float32[B].

  Returns:
    float32[B], NaN where one of them is.
  """
  total = first + second
  return jnp.where(total == 0, more_certain(first, second), total)


def _mean(first: jax.Array, second: jax.Array) -> jax.Array:
  return (first + second) / 2


RULES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  'entropy': more_certain,
  'max': jnp.maximum,
  'mean': _mean,
}
# What attackers follow in place of a rule.
_SURROGATES = RULES | {'entropy': certain_sum}


def temperature(logits: np.ndarray, attacked: np.ndarray) -> float:
  """Finds the temperature with which logits are calibrated best.

  The targets are those of Platt, (n + 1) / (n + 2) and 1 / (n + 2) with n the
  rows of the kind, in place of 1 and 0: a detector that makes no mistake on
  few rows would otherwise become infinitely sure.

  Args:
    logits: float[n].
    attacked: bool[n].

  Returns:
    The T, within [1/1000, 1000] or so, for which the cross-entropy of
    `logits / T` is smallest.

  Raises:
    DataError: If there are no logits, or one is not finite.

  References:
    Guo et al., On Calibration of Modern Neural Networks, 2017,
    https://arxiv.org/abs/1706.04599, section 4.2. Platt, Probabilistic
    Outputs for Support Vector Machines, 1999, section 2.2.
  """
  logits, num_attacked = np.asarray(logits, np.float64), np.sum(attacked)
  broken = ~np.isfinite(logits)
  if broken.any() or not len(logits):
    raise DataError(
      f'{broken.sum()} of {len(logits)} logits to calibrate a detector by are '
      'not finite; look at the weights of the detector and at the logits of '
      'the classifier'
    )
  num_clean = len(logits) - num_attacked
  targets = np.where(
    attacked, (num_attacked + 1) / (num_attacked + 2), 1 / (num_clean + 2)
  )

  def cross_entropy(log_temperature: np.ndarray) -> np.floating:
    scaled = logits / np.exp(log_temperature)
    return np.mean(np.logaddexp(0, scaled) - targets * scaled)

  found = optimize.minimize_scalar(
    cross_entropy,
    bounds=(-_LARGEST_LOG_TEMPERATURE, _LARGEST_LOG_TEMPERATURE),
    method='bounded',
    options={'xatol': 1e-6},
  )
  return float(np.exp(found.x))


def calibrated_state(
  key: jax.Array,
  detectors: tuple[Detector, Detector],
  classifier: Any,
  states: tuple[PyTree, PyTree],
  valid: Iterable[Batch],
) -> EnsembleState:
  """Makes the state of an ensemble of detectors that are fitted already.

  Args:
    key: One key, for detectors whose scores are random.
    detectors: The first and the second; scores are logits.
    classifier: What their `score` is given.
    states: Theirs.
    valid: Batches that the temperatures are fitted on.

  Returns:
    The state.
  """
  found = []
  for detector, state in zip(detectors, states, strict=True):
    score = jax.jit(detector.score)
    logits, attacked = [], []
    for batch in checked_batches(valid, 'valid'):
      keys = picture_keys(key, batch.source)
      mask = np.asarray(batch.mask)
      scores = score(keys, as_pytree(classifier), state, batch.images)
      logits.append(np.asarray(scores)[mask])
      attacked.append(np.asarray(batch.kind)[mask] != 0)
    found.append(temperature(np.concatenate(logits), np.concatenate(attacked)))
  return EnsembleState(states, jnp.asarray(found, jnp.float32))


def entropy_ensemble(
  first: Detector,
  second: Detector,
  *,
  rule: str = 'entropy',
  calibrate: bool = True,
) -> Detector:
  """Makes one detector of two, such as one on gradients and one on pixels.

  Args:
    first: Its scores are logits; it wins ties. In the paper DET_IS.
    second: Likewise. In the paper DET_org.
    rule: 'entropy', the logit of the detector whose probability has less
      binary entropy; 'max', the larger one; 'mean', the mean of both.
    calibrate: Whether logits are divided by temperatures fitted on the
      validation rows. Without, the entropy picks the overconfident detector.

  Returns:
    A `Detector`; scores are logits, positive where attacked is more likely.
    The switch of the entropy is not smooth, so the surrogate is the sum of both
    logits, which has its sign; the other rules are their own surrogates. It
    takes each detector's own surrogate if it has one. `fit` fits both; for
    detectors fitted before see `calibrated_state`.

  Raises:
    UserError: If the rule is unknown.

  Departs from the paper: the calibration and the other rules; logits in place
  of the probabilities, which they order alike.

  References:
    Li et al., Are L2 Adversarial Examples Intrinsically Different?, 2020,
    section 3.
  """
  if rule not in RULES:
    raise UserError(f'rule is {rule!r} but must be one of {", ".join(RULES)}')
  detectors = first, second

  def fit(
    key: jax.Array,
    classifier: Any,
    train: Iterable[Batch],
    valid: Iterable[Batch],
  ) -> EnsembleState:
    key_first, key_second, key_score = jax.random.split(key, 3)
    states = (
      first.fit(key_first, classifier, train, valid),
      second.fit(key_second, classifier, train, valid),
    )
    if not calibrate:
      return EnsembleState(states, jnp.ones(2, jnp.float32))
    return calibrated_state(key_score, detectors, classifier, states, valid)

  def combined(
    functions: Sequence[ScorePictures],
    join: Callable[[jax.Array, jax.Array], jax.Array],
  ) -> ScorePictures:
    def score(
      keys: Keys | None,
      classifier: Any,
      state: EnsembleState,
      images: Images,
    ) -> Scores:
      return join(
        *(
          function(keys, classifier, fitted, images) / state.temperatures[i]
          for i, (function, fitted) in enumerate(
            zip(functions, state.states, strict=True)
          )
        )
      )

    return score

  return make_detector(
    fit,
    combined([d.score for d in detectors], RULES[rule]),
    combined(
      [d.surrogate or d.score for d in detectors],
      _SURROGATES[rule],
    ),
  )
