"""A classifier behind a purifier, as users meet it and as attacks see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxadv.attacks.adaptive import bpda
from jaxadv.classifier import Classifier, as_pytree, from_function, identity
from jaxadv.types import ClassifierLike, Images, Keys, Logits, Purifier, PyTree


@dataclasses.dataclass(frozen=True)
class _Chain:
  """Static half of `purified`; equal purifiers compare equal."""

  purifier: Purifier
  backward: Callable[[jax.Array], jax.Array]

  def __call__(
    self, variables: tuple[Any, PyTree], images: Images, keys: Keys
  ) -> Logits:
    classifier, state = variables

    def purify(
      images: Images, keys: Keys, classifier: Any, state: PyTree
    ) -> Images:
      return self.purifier.purify(keys, classifier, state, images)

    pure = bpda(purify, self.backward)(images, keys, classifier, state)
    return classifier(pure)


def purified(
  classifier: ClassifierLike,
  purifier: Purifier,
  state: PyTree = (),
  *,
  backward: Callable[[jax.Array], jax.Array] = identity,
) -> Classifier:
  """Puts a purifier before a classifier.

  Forward, pictures are purified; backward, gradients pass the purifier as if
  it were `backward` (BPDA), which is what an attacker who knows the defence
  does. `attacks.adaptive.eot` averages over its draws.

  Args:
    classifier: A deterministic classifier.
    purifier: Any `Purifier`.
    state: What its `fit` gave.
    backward: `images -> images`, differentiable; the default, the identity,
      is right for a purifier that changes pictures little.

  Returns:
    A stochastic `Classifier`, which is called with `keys`.

  Example:
    >>> network = eot(purified(classifier, total_variance()), num_draws=30)
    >>> attack = jax.jit(pgd(8 / 255, num_steps=10))
    >>> attacked, success = attack(keys, network, images, labels)

  References:
    Athalye et al., Obfuscated Gradients Give a False Sense of Security, 2018,
    https://arxiv.org/abs/1802.00420, sections 4.1, 4.2 and 5.4.
  """
  return from_function(
    _Chain(purifier, backward),
    (as_pytree(classifier), state),
    stochastic=True,
  )
