"""Backbones as chains of named stages that can be entered and left anywhere.

A backbone is a `Chain` with a method `stages()`, a dict from the name of each
stage to a constructor that takes `name=`, in the order of computation; every
stage is called as `stage(x, train)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxadv.errors import UserError
from jaxadv.types import PyTree


class Chain(nn.Module):
  """What all backbones share: they run their stages, or a stretch of them."""

  @nn.nowrap
  def stages(self) -> Mapping[str, Callable[..., Any]]:
    """Gives the constructors of the stages, in order; each network has its."""
    return {}

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    train: bool = False,
    *,
    start: str | None = None,
    stop: str | None = None,
  ) -> jax.Array:
    """Maps preprocessed images to logits, or runs a stretch of the chain.

    Args:
      x: float32[B, H, W, 3], or what stage `start` gave.
      train: Whether BatchNorm uses the statistics of the batch; make
        'batch_stats' mutable then.
      start: The stage after which to begin; None for the image.
      stop: The last stage to run; None for the end, the logits.

    Returns:
      float32[B, num_classes], or what stage `stop` gives.

    Raises:
      UserError: If a name is not that of a stage, or `start` comes after
        `stop`.
    """
    stages = self.stages()
    names = tuple(stages)
    first = 0 if start is None else _position(names, start) + 1
    last = len(names) if stop is None else _position(names, stop) + 1
    if first > last:
      raise UserError(
        f'{start!r} comes after {stop!r}; the stages are {", ".join(names)}'
      )
    for name in names[first:last]:
      x = stages[name](name=name)(x, train)
    return x


class PoolHead(nn.Module):
  """The last stage of most backbones: global average pooling, dense layer.

  Attributes:
    num_classes: Number of logits.
    layer: Name of the dense layer.
  """

  num_classes: int
  layer: str = 'predictions'

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps the last maps, float[B, H, W, C], to logits."""
    pooled = jnp.mean(x, axis=(1, 2))
    return nn.Dense(self.num_classes, name=self.layer)(pooled)


def stage_names(module: Any) -> tuple[str, ...]:
  """Lists the stages of a backbone in the order of computation."""
  return tuple(module.stages())


def split_variables(
  module: Any, variables: PyTree, split: str
) -> tuple[PyTree, PyTree]:
  """Divides variables into those of a frozen prefix and of the rest.

  Args:
    module: The backbone.
    variables: `{'params': {stage: ...}, 'batch_stats': {stage: ...}}`.
    split: The last stage of the prefix.

  Returns:
    `(prefix, suffix)`, each of the form of `variables`. The prefix serves
    `module.apply(prefix, images, stop=split)`, the suffix
    `module.apply(suffix, features, start=split)`.

  Raises:
    UserError: If `split` is not a stage.
  """
  names = stage_names(module)
  frozen = names[: _position(names, split) + 1]

  def keep(in_prefix: bool) -> PyTree:
    return {
      collection: {
        stage: values
        for stage, values in tree.items()
        if (stage in frozen) == in_prefix
      }
      for collection, tree in variables.items()
    }

  return keep(True), keep(False)


def _position(names: tuple[str, ...], name: str) -> int:
  if name not in names:
    raise UserError(
      f'{name!r} is not a stage of this backbone; choose one of '
      f'{", ".join(names)}'
    )
  return names.index(name)
