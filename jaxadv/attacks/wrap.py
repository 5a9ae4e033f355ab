"""Attacks made from a perturbation, or from another attack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv.errors import UserError
from jaxadv.losses import succeeded
from jaxadv.norms import per_row
from jaxadv.types import (
  Attack,
  AttackResult,
  ClassifierLike,
  Images,
  Keys,
  Labels,
  PyTree,
)


class OneShotState(NamedTuple):
  """State of a one-shot attack, one row a picture.

  Attributes:
    keys: key[B].
    done: bool[B], whether the clean picture is a success already.
  """

  keys: Keys
  done: jax.Array


def one_shot(
  perturb: Callable[[Keys, Images], Images],
  *,
  targeted: bool = False,
) -> Attack:
  """Makes an attack of a perturbation that does not ask the classifier.

  Args:
    perturb: `(keys, images) -> images`, key[B] and float32[B, H, W, C] in
      [0, 1] to the same.
    targeted: Whether `labels` name the classes to reach.

  Returns:
    An `Attack`. A row without success holds the perturbed picture.
  """

  def init(
    keys: Keys, classifier: ClassifierLike, images: Images, labels: Labels
  ) -> OneShotState:
    done = succeeded(classifier(images), labels, targeted=targeted)
    return OneShotState(keys, done)

  def step(
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    state: OneShotState,
  ) -> OneShotState:
    del classifier, images, labels  # One-shot: `finish` does the work.
    return state

  def finish(
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    state: OneShotState,
  ) -> AttackResult:
    perturbed = perturb(state.keys, images)
    result = jnp.where(per_row(state.done, images), images, perturbed)
    success = succeeded(classifier(result), labels, targeted=targeted)
    return AttackResult(result, success)

  return Attack(init, step, finish, max_steps=0, targeted=targeted)


class AgainstState(NamedTuple):
  """State of an attack on a view of the classifier, one row a picture.

  Attributes:
    inner: State of the attack.
    given: What the view of each row depends on, a pytree.
    done: bool[B], that of `inner`.
  """

  inner: Any
  given: PyTree
  done: jax.Array


def against(
  attack: Attack,
  view: Callable[..., ClassifierLike],
  draw: Callable[[Keys, Images], PyTree],
) -> Attack:
  """Lets an attack see something else in place of the classifier.

  Args:
    attack: Any `Attack`; its success is judged by what it sees.
    view: `(classifier, images, labels, given) -> classifier`, where the
      images are the clean ones.
    draw: `(keys, images) -> given`, a pytree of arrays with leading axis B,
      drawn once a picture.

  Returns:
    An `Attack`.

  Raises:
    UserError: If it is several attacks, a `Composite`.
  """
  if not isinstance(attack, Attack):
    raise UserError(
      f'a single attack is needed but a {type(attack).__name__} was given; '
      'change its parts one by one, and then join them with sequence, over or '
      'restarts'
    )

  def wrap(inner: Any, given: PyTree) -> AgainstState:
    return AgainstState(inner, given, inner.done)

  def init(
    keys: Keys, classifier: ClassifierLike, images: Images, labels: Labels
  ) -> AgainstState:
    split = jax.vmap(jax.random.split)(keys)
    given = draw(split[:, 0], images)
    seen = view(classifier, images, labels, given)
    return wrap(attack.init(split[:, 1], seen, images, labels), given)

  def step(
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    state: AgainstState,
  ) -> AgainstState:
    seen = view(classifier, images, labels, state.given)
    # A driver may have put rows to rest.
    inner = state.inner._replace(done=state.done)
    return wrap(attack.step(seen, images, labels, inner), state.given)

  def finish(
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    state: AgainstState,
  ) -> AttackResult:
    seen = view(classifier, images, labels, state.given)
    inner = state.inner._replace(done=state.done)
    return attack.finish(seen, images, labels, inner)

  return Attack(init, step, finish, attack.max_steps, attack.targeted)
