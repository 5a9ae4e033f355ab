"""What is trained: how rows are read, and what a step does with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxadv.training.state import TrainState
from jaxadv.types import PyTree

# `(params, batch_stats, examples, mask, key) -> (losses, batch_stats)`.
Loss = Callable[..., tuple[jax.Array, PyTree]]
# `(state, examples, mask, key, apply_gradients) -> (state, {name: losses})`.
Update = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


class Task(NamedTuple):
  """All that the training loop knows of a problem; pure functions.

  `data` is any pytree of arrays on the device (pictures, cached features,
  label tables, frozen weights), passed as an argument and not closed over, so
  that other data of the same shapes do not recompile. `member` is int32[],
  which of several trainings this is. Keep a task and use it again: the
  compiled loop is found by the identity of these functions.

  Attributes:
    init: `(key, data, member) -> {'params': ..., 'batch_stats': ...}`, the
      latter only if the network has any.
    gather: `(data, indices, member, key) -> examples`; reads the rows
      `indices`, int32[B], as a pytree of arrays [B, ...]. `key` is for random
      augmentation and None outside of training. No gradient flows through it.
    update: What a step does: `minimise` of a loss, `alternate` of the losses
      of several players, or another function
      `(state, examples, mask, key, apply_gradients) -> (state, losses)`.
      `apply_gradients(state, gradients, player=None)` takes a step of an
      optimizer and may be called more than once; the rest of the `TrainState`
      but `step` is the update's to replace. `losses` has by name float32[B],
      or float32[] of the whole batch; the history has the mean of each over
      the rows of an epoch where `mask`, bool[B], holds, as `train_...` of the
      name, and the training stops if one is not finite.
    measure: `(params, batch_stats, examples) -> {'loss': float32[B], ...}` in
      inference mode; anything else with a row an example may be added.
    selection_metric: `(measured) -> float32[]`, how good a network is on the
      validation rows as a whole, from what `measure` gives for all of them.
      The training then ends with the weights of the best epoch (the first of
      equals); with None, with those of the last epoch.
    players: Names of the parts of `params`, a dict, that have an optimizer
      each; () if one optimizer moves all.
  """

  init: Callable[..., dict[str, PyTree]]
  gather: Callable[..., PyTree]
  update: Update
  measure: Callable[..., dict[str, jax.Array]]
  selection_metric: Callable[[dict[str, jax.Array]], jax.Array] | None = None
  players: tuple[str, ...] = ()


def minimise(loss: Loss, player: str | None = None) -> Update:
  """Makes the usual update: a step down the gradient of the mean loss.

  Args:
    loss: `(params, batch_stats, examples, mask, key) -> (losses, batch_stats)`
      in training mode; losses float32[B], of which the mean is taken over the
      rows where `mask`, bool[B], holds. Rows that are masked out are real rows
      seen a second time, so BatchNorm may use them.
    player: Who moves; the others' parameters are constants. None if the task
      has no players.

  Returns:
    The update; its losses are named 'loss', or as the player.
  """

  def update(state, examples, mask, key, apply_gradients):
    def mean_loss(own):
      params = own if player is None else state.params | {player: own}
      losses, batch_stats = loss(params, state.batch_stats, examples, mask, key)
      total = jnp.where(mask, losses, 0).sum()
      return total / mask.sum(), (losses, batch_stats)

    own = state.params if player is None else state.params[player]
    gradients, (losses, batch_stats) = jax.grad(mean_loss, has_aux=True)(own)
    state = state._replace(batch_stats=batch_stats)
    return apply_gradients(state, gradients, player), {player or 'loss': losses}

  return update


def alternate(**losses: Loss) -> Update:
  """Makes the update of players who move in turn, each by its own loss.

  Args:
    **losses: As of `minimise`, by player, in the order of their moves; `params`
      is what all players have, after the moves before.

  Returns:
    The update of a task with these players; its losses are named as they are.

  Example:
    >>> update = alternate(discriminator=tells_apart, generator=deceives)
  """
  moves = [minimise(loss, player) for player, loss in losses.items()]

  def update(state, examples, mask, key, apply_gradients):
    found: dict[str, jax.Array] = {}
    keys = jax.random.split(key, len(moves))
    for move, own_key in zip(moves, keys, strict=True):
      state, losses = move(state, examples, mask, own_key, apply_gradients)
      found |= losses
    return state, found

  return update


def classification(
  init: Callable[..., dict[str, PyTree]],
  apply: Callable[..., tuple[jax.Array, PyTree]],
  gather: Callable[..., Mapping[str, jax.Array]],
) -> Task:
  """Makes the task of telling classes apart by cross-entropy.

  Args:
    init: As in `Task`.
    apply: `(variables, inputs, train, key) -> (logits, batch_stats)`; see
      `linen_apply`. Logits are float32[B, K], or float32[B, 1] for two classes
      told apart by a sigmoid (binary cross-entropy).
    gather: As in `Task`; gives 'inputs', 'labels', int32[B], and optionally
      'weights', float32[B], that multiply the losses.

  Returns:
    The task; `measure` gives 'loss', 'accuracy' and 'logits'.
  """

  def losses_of(logits, examples):
    labels = examples['labels']
    if logits.shape[-1] == 1:
      losses = optax.sigmoid_binary_cross_entropy(
        logits[:, 0], labels.astype(logits.dtype)
      )
    else:
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses * examples.get('weights', 1.0)

  def loss(params, batch_stats, examples, mask, key):
    del mask
    variables = {'params': params, 'batch_stats': batch_stats}
    logits, batch_stats = apply(variables, examples['inputs'], True, key)
    return losses_of(logits, examples), batch_stats

  def measure(params, batch_stats, examples):
    variables = {'params': params, 'batch_stats': batch_stats}
    logits, _ = apply(variables, examples['inputs'], False, None)
    found = logits.argmax(-1) if logits.shape[-1] > 1 else logits[:, 0] > 0
    return {
      'loss': losses_of(logits, examples),
      'accuracy': (found == examples['labels']).astype(jnp.float32),
      'logits': logits,
    }

  return Task(init, gather, minimise(loss), measure)


def linen_apply(module: nn.Module, **arguments: Any) -> Callable[..., Any]:
  """Makes the `apply` of `classification` from a Linen module.

  Args:
    module: Called as `module(inputs, train=..., **arguments)`; it may draw
      from the random stream 'dropout'.
    **arguments: Passed on.

  Returns:
    `(variables, inputs, train, key) -> (logits, batch_stats)`.
  """

  def apply(variables, inputs, train, key):
    if not train:
      logits = module.apply(variables, inputs, train=False, **arguments)
      return logits, variables['batch_stats']
    logits, changed = module.apply(
      variables,
      inputs,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': key},
      **arguments,
    )
    return logits, changed.get('batch_stats', {})

  return apply


def gather_images(
  augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
  preprocess: Callable[[jax.Array], jax.Array] | None = None,
) -> Callable[..., dict[str, jax.Array]]:
  """Makes a `gather` that reads pictures kept on the device.

  Args:
    augment: `(key, images) -> images` on pictures as they are kept, in
      training only; see `jaxadv.training.augment`.
    preprocess: From float32 in [0, 1] to what the network expects.

  Returns:
    A `gather` for data with 'images', uint8[N, H, W, C] or float32 in [0, 1],
    and 'labels', int32[N], or int32[E, N] with a row for each member.
  """

  def gather(data, indices, member, key):
    images, labels = data['images'][indices], data['labels']
    if augment is not None and key is not None:
      images = augment(key, images)
    if images.dtype == jnp.uint8:
      images = images.astype(jnp.float32) / 255
    if preprocess is not None:
      images = preprocess(images)
    rows = labels[member, indices] if labels.ndim == 2 else labels[indices]
    return {'inputs': images, 'labels': rows}

  return gather
