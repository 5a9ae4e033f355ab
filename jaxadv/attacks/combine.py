"""Attacks made of attacks: one after the other, over values, restarted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxadv.attacks.drive import Composite
from jaxadv.errors import UserError
from jaxadv.norms import per_row
from jaxadv.types import (
  Attack,
  AttackResult,
  ClassifierLike,
  Images,
  Keys,
  Labels,
)
from jaxadv.utils import check_whole

Part = Attack | Composite


def sequence(attacks: Sequence[Part]) -> Composite:
  """Runs attacks in turn, each on the pictures that withstood those before.

  With refilled slots, a picture on which an attack had success costs the
  later ones nothing but their first and last forward pass.

  Args:
    attacks: At least one; all targeted or all untargeted.

  Returns:
    A `Composite`. A row holds the first success, or else what the last
    attack left.

  Raises:
    UserError: If there is none, or targeted and untargeted ones are mixed.

  References:
    Croce and Hein, Reliable Evaluation of Adversarial Robustness with an
    Ensemble of Diverse Parameter-free Attacks, 2020,
    https://arxiv.org/abs/2003.01690, section 5.
  """
  if not attacks:
    raise UserError('a sequence needs at least one attack')
  if len({attack.targeted for attack in attacks}) > 1:
    raise UserError(
      'a sequence has targeted and untargeted attacks, whose labels differ in '
      'meaning; build all of one sort'
    )

  def run(
    drive: Callable[..., AttackResult],
    keys: Keys,
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    done: jax.Array | None,
  ) -> AttackResult:
    found = _nothing(images, done)
    for position, attack in enumerate(attacks):
      result = drive(
        attack,
        _folded(keys, position),
        classifier,
        images,
        labels,
        done=found.success,
      )
      found = _first(found, result)
    return _without(found, done)

  return Composite(run, attacks[0].targeted)


def over(
  make: Callable[[jax.Array], Part],
  values: jax.Array,
  *,
  smallest: Callable[[jax.Array], jax.Array] | None = None,
) -> Composite:
  """Runs an attack with one value after the other, compiled once for all.

  Args:
    make: `value -> attack`; the value is traced.
    values: [N, ...], one entry a run: epsilons, target ranks, restarts.
    smallest: None: a picture rests after its first success. A norm, such as
      `norms.l2`: all runs take place, and the smallest successful change is
      kept, as minimal-norm attacks want it.

  Returns:
    A `Composite`. A row without success holds what the last run left.

  Raises:
    UserError: If there is no value.
  """
  values = jnp.asarray(values)
  if not values.ndim or not len(values):
    raise UserError(
      f'values have the shape {values.shape} but must be at least one, [N, ...]'
    )

  def run(
    drive: Callable[..., AttackResult],
    keys: Keys,
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    done: jax.Array | None,
  ) -> AttackResult:
    def turn(
      found: AttackResult, numbered: tuple[jax.Array, jax.Array]
    ) -> tuple[AttackResult, None]:
      position, value = numbered
      rest = found.success if smallest is None else done
      result = drive(
        make(value),
        _folded(keys, position),
        classifier,
        images,
        labels,
        done=rest,
      )
      if smallest is None:
        return _first(found, result), None
      closer = smallest(result.images - images) < smallest(
        found.images - images
      )
      worse = found.success & ~(result.success & closer)
      return _first(found._replace(success=worse), result), None

    numbered = (jnp.arange(len(values)), values)
    found, _ = jax.lax.scan(turn, _nothing(images, done), numbered)
    return _without(found, done)

  return Composite(run, make(values[0]).targeted)


def restarts(
  attack: Part,
  num_restarts: int,
  *,
  smallest: Callable[[jax.Array], jax.Array] | None = None,
) -> Composite:
  """Repeats a random attack with other draws.

  Args:
    attack: An attack that uses its keys.
    num_restarts: Number of runs, at least 1.
    smallest: See `over`.

  Returns:
    A `Composite`, compiled once for all runs.

  Raises:
    UserError: If `num_restarts` is below 1.
  """
  check_whole('num_restarts', num_restarts, 1)
  return over(lambda _: attack, jnp.arange(num_restarts), smallest=smallest)


def _folded(keys: Keys, position: int | jax.Array) -> jax.Array:
  """Keys of a part."""
  return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, position)


def _nothing(images: Images, done: jax.Array | None) -> AttackResult:
  success = jnp.zeros(len(images), bool) if done is None else done
  return AttackResult(images, success)


def _first(found: AttackResult, result: AttackResult) -> AttackResult:
  """Keeps what was found; takes the result in all other rows."""
  kept = per_row(found.success, found.images)
  return AttackResult(
    jnp.where(kept, found.images, result.images),
    found.success | result.success,
  )


def _without(found: AttackResult, done: jax.Array | None) -> AttackResult:
  """Takes back that rows which took no part count as successes."""
  return (
    found if done is None else found._replace(success=found.success & ~done)
  )
