"""Signs that an evaluation flatters a defence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxadv import losses
from jaxadv.attacks.combine import restarts
from jaxadv.attacks.drive import Composite
from jaxadv.attacks.inputs import (
  attack_inputs,
  check_outputs,
  guessing,
  try_classifier,
)
from jaxadv.attacks.pgd import pgd
from jaxadv.attacks.square import square
from jaxadv.attacks.wrap import one_shot
from jaxadv.classifier import as_classifier
from jaxadv.data.batching import map_batches
from jaxadv.errors import UserError
from jaxadv.inputs import as_float, as_key
from jaxadv.metrics.distortion import distortion, exceeds
from jaxadv.norms import ball, linf
from jaxadv.types import (
  Attack,
  ClassifierLike,
  Images,
  Keys,
  Labels,
  Logits,
  bound,
  picture_keys,
)
from jaxadv.utils import check_range

# A margin from which exp(-margin), and with it the gradient of the softmax
# cross-entropy, is 0 in float32.
SATURATED = 87.0

_NUM_NOISES = 10
# Draws of a stochastic classifier, far from the numbers of steps of attacks.
_JUDGED = 2**31 - 5
# Doubts that are measured here, on all pictures.
_MEASURED = ('random_outputs', 'zero_gradients', 'vanishing_gradients')
_FACTORS = (0.5, 1.0, 2.0, 4.0)


class Finding(NamedTuple):
  """One sign that robustness is overestimated.

  Attributes:
    name: 'guessing', 'broken_gradients', 'batch_dependent', 'doubtful_outputs',
      'random_outputs', 'saturated_logits', 'zero_gradients',
      'vanishing_gradients', 'success_falls', 'blind_attack_wins' or
      'black_box_wins'.
    message: What was seen, with the numbers, and what to do about it.
  """

  name: str
  message: str


class Report(NamedTuple):
  """What `check` returns.

  Attributes:
    warnings: None if all is well.
    numbers: All that was measured, by name, warned of or not. Shares and
      rates are of the pictures classified correctly when clean.
    curve: Success rate of the gradient attack by radius, in rising order.
  """

  warnings: list[Finding]
  numbers: dict[str, float]
  curve: dict[float, float]


class _Look(NamedTuple):
  """What is seen at the clean pictures, a row each."""

  logits: Any
  correct: Any
  margin: Any
  flat: Any
  vanishing: Any


def _look(
  classifier: ClassifierLike, keys: Keys, images: Images, labels: Labels
) -> _Look:
  """Measures outputs and gradients at the clean pictures."""
  classifier = bound(classifier, keys, 0)

  def total(loss: losses.Loss) -> tuple[jax.Array, Logits]:
    def value(images: Images) -> tuple[jax.Array, Logits]:
      logits = classifier(images)
      return loss(logits, labels).sum(), logits

    return jax.grad(value, has_aux=True)(images)

  slope, logits = total(losses.margin)
  steepness, _ = total(losses.cross_entropy)
  usable = lambda gradient: (linf(gradient) > 0) & jnp.isfinite(linf(gradient))
  return _Look(
    logits=logits,
    correct=~losses.succeeded(logits, labels),
    margin=losses.margin(logits, labels),
    flat=~usable(slope),
    vanishing=usable(slope) & ~usable(steepness),
  )


def check(
  key: jax.Array,
  classifier: ClassifierLike,
  images: ArrayLike,
  labels: ArrayLike,
  *,
  norm: str = 'linf',
  epsilon: float = 8 / 255,
  epsilons: Sequence[float] = (),
  attack: Callable[[jax.Array], Attack | Composite] | None = None,
  attacked: Mapping[str, ArrayLike] | None = None,
  num_steps: int = 20,
  num_queries: int = 200,
  batch_size: int = 128,
  tolerance: float = 0.02,
) -> Report:
  """Looks for signs that attacks fail for the wrong reason.

  Warns if outputs are random, no logits or dependent on the batch, logits so
  far apart that the cross-entropy has no gradient, gradients zero or not
  finite, a larger budget helps less, or an attack without gradients beats the
  one with them. No warning is no proof of robustness.

  Args:
    key: For random starts, noise, and the draws of a stochastic classifier.
    classifier: The classifier in question, with its defence.
    images: [N, H, W, C], uint8 or floating in [0, 1]; some hundreds are
      enough.
    labels: int[N], the true classes.
    norm: 'linf', 'l2' or 'l1', that of the budget.
    epsilon: Radius of the budget in image units.
    epsilons: Radii at which to measure the gradient attack, beside epsilon
      and its half, double and fourfold.
    attack: `epsilon -> attack`, the untargeted gradient attack in question,
      where epsilon is traced; None for PGD with `num_steps` steps of a
      quarter of epsilon.
    attacked: Pictures [N, H, W, C] by the name of the attack that made them
      of `images` without gradients of this classifier, within epsilon: by
      queries, or against another network.
    num_steps: Of PGD.
    num_queries: Of the Square attack, the stronger of two blind ones, which
      there is in Linf and L2; the other takes the best of ten draws of noise.
    batch_size: Pictures at a time.
    tolerance: Warnings of shares begin above this, those of rates at a
      difference above it, in [0, 1].

  Returns:
    A `Report`.

  Raises:
    UserError: If an argument has the wrong shape or range, attacked pictures
      exceed the budget, or no picture is classified correctly.
    DataError: If a picture or the classifier has a NaN.

  References:
    Athalye et al., Obfuscated Gradients Give a False Sense of Security, 2018,
    https://arxiv.org/abs/1802.00420, section 3.1; Carlini et al., On
    Evaluating Adversarial Robustness, 2019,
    https://arxiv.org/abs/1902.06705, section 4; the limit of a margin is
    ours.
  """
  budget = ball(norm, epsilon)
  check_range('tolerance', tolerance, 0, 1)
  check_range('batch_size', batch_size, 1, float('inf'))
  key, classifier = as_key(key), as_classifier(classifier)
  given = attack_inputs(images, labels)
  clean, truth = as_float(given.images), given.labels
  check_outputs(classifier, key, given)
  doubts = try_classifier(classifier, key, given)
  num = len(truth)
  size = min(batch_size, num)
  keys = picture_keys(key, jnp.arange(num))

  def over_set(function: Callable[..., Any], pictures: Any = clean) -> Any:
    """Compiles anew, so that draws made while tracing show as differences."""
    compiled = jax.jit(lambda *given: function(*given))

    def run(*extra: Any) -> Any:
      return map_batches(
        lambda *rows: compiled(classifier, *rows, *extra),
        keys,
        pictures,
        truth,
        batch_size=size,
      )

    return run

  look, again = over_set(_look)(), over_set(_logits)(1)
  correct = look.correct
  if not correct.any():
    raise UserError(
      'the classifier gets none of the pictures right; check the labels and '
      'the preprocessing'
    )

  others = {}
  for name, pictures in (attacked or {}).items():
    pictures = as_float(pictures, f'the pictures of {name}')
    if pictures.shape != clean.shape:
      raise UserError(
        f'the pictures of {name} have shape {pictures.shape} but must be the '
        f'attacked {clean.shape}'
      )
    sizes = getattr(distortion(clean, pictures), norm)
    distance = float(sizes.max())
    if exceeds(distance, epsilon, norm, clean[0].size):
      raise UserError(
        f'the pictures of {name} lie up to {distance:.4g} from the clean ones '
        f'but must stay within epsilon, {epsilon:.4g}'
      )
    logits = jnp.asarray(over_set(_logits, pictures)(0))
    fooled = losses.succeeded(logits, jnp.asarray(truth))
    others[name] = float(fooled[correct].mean())

  def success_of(
    make: Callable[[Any], Attack | Composite],
  ) -> Callable[[float], float]:
    def success(
      classifier: ClassifierLike,
      keys: Keys,
      images: Images,
      labels: Labels,
      epsilon: jax.Array,
    ) -> jax.Array:
      result = make(epsilon)(keys, classifier, images, labels)
      if not getattr(classifier, 'stochastic', False):
        return result.success
      # With draws that the attack has not seen: many tries find a lucky one.
      logits = bound(classifier, keys, _JUDGED)(result.images)
      return losses.succeeded(logits, labels)

    run = over_set(success)
    return lambda epsilon: float(run(np.float32(epsilon))[correct].mean())

  def by_gradient(epsilon: jax.Array) -> Attack:
    return pgd(ball(norm, epsilon), epsilon / 4, num_steps, early_stop=True)

  def by_noise(epsilon: jax.Array) -> Composite:
    def perturb(keys: Keys, images: Images) -> Images:
      radius = jnp.full(len(images), epsilon)
      noise = budget.sample(keys, images.shape, radius)
      return jnp.clip(images + noise, 0, 1)

    return restarts(one_shot(perturb), _NUM_NOISES)

  by_search = lambda epsilon: square(ball(norm, epsilon), num_queries)
  gradient_attack = success_of(attack or by_gradient)
  largest = 1.0 if norm == 'linf' else float('inf')
  radii = sorted({*epsilons, *(epsilon * factor for factor in _FACTORS)})
  curve = {
    radius: gradient_attack(radius) for radius in radii if radius <= largest
  }
  blind = {'noise': success_of(by_noise)(epsilon)}
  if norm != 'l1':
    blind['square'] = success_of(by_search)(epsilon)
  share = lambda flags: float(flags[correct].mean())
  same = look.logits == again  # Infinities, too.
  spread = np.where(same, 0, np.abs(look.logits - again)).max()
  numbers = {
    'clean_accuracy': float(correct.mean()),
    'output_spread': float(spread),
    'changed_predictions': float(
      np.mean(look.logits.argmax(-1) != again.argmax(-1))
    ),
    'median_margin': float(np.median(-look.margin[correct])),
    'saturated_logits': share(-look.margin > SATURATED),
    'zero_gradients': share(look.flat),
    'vanishing_gradients': share(look.vanishing),
    **{f'success_at_{radius:.4g}': rate for radius, rate in curve.items()},
    **{f'success_{name}': rate for name, rate in (blind | others).items()},
  }
  found = [
    Finding(name, f'the classifier: {sentence}')
    for name, sentence in doubts.items()
    if name not in _MEASURED
  ]
  found += [
    Finding('guessing', f'the classifier: {sentence}')
    for sentence in guessing(correct, look.logits.shape[1])
  ]
  return Report(
    found
    + _warnings(
      numbers,
      curve,
      epsilon,
      blind,
      others,
      tolerance,
      float(np.abs(look.logits).max()),
    ),
    numbers,
    curve,
  )


def _warnings(
  numbers: dict[str, float],
  curve: dict[float, float],
  epsilon: float,
  blind: dict[str, float],
  others: dict[str, float],
  tolerance: float,
  scale: float,
) -> list[Finding]:
  """Says what of the measured is suspicious."""
  found = []

  def warn(name: str, message: str) -> None:
    found.append(Finding(name, message))

  percent = lambda name: f'{100 * numbers[name]:.1f} % of the pictures'
  # Sums in another order may differ by this much on an accelerator.
  if numbers['output_spread'] > 1e-4 * max(1.0, scale):
    warn(
      'random_outputs',
      'two calls gave logits that differ by up to '
      f'{numbers["output_spread"]:.3g} and other classes for '
      f'{percent("changed_predictions")}; attack the mean with eot, and '
      'repeat the evaluation',
    )
  if numbers['saturated_logits'] > tolerance:
    warn(
      'saturated_logits',
      f'{percent("saturated_logits")} have a margin above {SATURATED:g} '
      f'(median {numbers["median_margin"]:.3g}), where the cross-entropy has '
      'no gradient in float32; use the margin or DLR loss',
    )
  if numbers['zero_gradients'] > tolerance:
    warn(
      'zero_gradients',
      f'the logits have a zero or broken gradient at '
      f'{percent("zero_gradients")}; give the step that hides it a stand-in '
      'with bpda',
    )
  if numbers['vanishing_gradients'] > tolerance:
    warn(
      'vanishing_gradients',
      f'the cross-entropy has no gradient at '
      f'{percent("vanishing_gradients")} though the logits have; use the '
      'margin or DLR loss',
    )
  radii = list(curve)
  for small, large in zip(radii, radii[1:], strict=False):
    if curve[large] < curve[small] - tolerance:
      warn(
        'success_falls',
        f'success falls from {curve[small]:.3f} to {curve[large]:.3f} as '
        f'epsilon grows from {small:.4g} to {large:.4g}; take more steps or '
        'another step size',
      )
  for kind, name, rates in (
    ('blind_attack_wins', 'blind', blind),
    ('black_box_wins', 'black-box', others),
  ):
    for attack, rate in rates.items():
      if rate > curve[epsilon] + tolerance:
        warn(
          kind,
          f'the {name} attack {attack} has success {rate:.3f}, the gradient '
          f'attack {curve[epsilon]:.3f}; the gradients mislead it',
        )
  return found


def _logits(
  classifier: ClassifierLike,
  keys: Keys,
  images: Images,
  labels: Labels,
  turn: int | jax.Array,
) -> Logits:
  del labels
  return bound(classifier, keys, turn)(images)
