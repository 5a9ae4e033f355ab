"""What a plan of a run needs: what the cache holds, and rough times."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxadv import models
from jaxadv.models.names import parse_network
from jaxadv.storage import Cache

# Sustained on a 2-core CPU in training these networks; a rough guide.
FLOPS_PER_SECOND = 1e11
# A training step costs about three forward passes, an attack's step as much.
PASSES = 3


class Absent(Exception):
  """A piece is not in the cache."""


class Lookup(Cache):
  """A cache that finds pieces and makes none."""

  def get_or_make(self, unit, version, config, make, *, alone=False):
    """Gives the folder of a piece, or raises `Absent`."""
    del make, alone
    path = self.entry(unit, version, config)
    if not path.is_dir():
      raise Absent(unit)
    return path


def present(find) -> bool:
  """Tells whether `find`, which looks a piece up, finds it."""
  try:
    find()
  except Absent:
    return False
  return True


def seconds_of(network: str, image_size: int, passes: float) -> float:
  """Estimates the time of forward passes of a picture on a 2-core CPU.

  Args:
    network: `name:width:size`.
    image_size: Side of the pictures of the run, in pixels.
    passes: Number of passes, times that of pictures.
  """
  name, width, _ = parse_network(network)
  size = parse_network(network).size_for(image_size)
  module = models.build(name, num_classes=10, width=width, image_size=size)
  variables = jax.eval_shape(
    lambda: models.init_variables(jax.random.key(0), module, size)
  )
  image = jnp.zeros((1, size, size, 3))
  lowered = jax.jit(module.apply).lower(variables, image)
  cost = lowered.cost_analysis() or {'flops': 0.0}
  return passes * cost['flops'] / FLOPS_PER_SECOND


def duration(seconds: float) -> str:
  """Writes a time in minutes, hours or days."""
  minutes = max(1, round(seconds / 60))
  for unit, size in (('days', 1440), ('hours', 60)):
    if minutes >= 2 * size:
      return f'{minutes / size:.0f} {unit}'
  return f'{minutes} minutes'
