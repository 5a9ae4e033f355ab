"""Networks as users write them: `name:width:size`."""

from __future__ import annotations

from typing import NamedTuple

from jaxadv.errors import UserError, check_choices
from jaxadv.models import BACKBONES


class NetworkName(NamedTuple):
  """What `name:width:size` says of a network.

  Attributes:
    name: Of the backbone.
    width: Multiplies its channels.
    size: Side of the pictures that it takes; 0 for that of the run's.
  """

  name: str
  width: float
  size: int

  def size_for(self, image_size: int) -> int:
    """Gives the side of the pictures it takes, given that of the run's."""
    return self.size or max(image_size, BACKBONES[self.name].min_size)


def parse_network(text: str) -> NetworkName:
  """Reads a network written as `name:width:size`.

  Raises:
    UserError: If the name is unknown, or width or size no such number.
  """
  name, *numbers = text.split(':')
  check_choices('network', [name], tuple(BACKBONES))
  try:
    width = float(numbers[0]) if numbers else 1.0
    size = int(numbers[1]) if len(numbers) > 1 else 0
  except ValueError:
    width = size = -1
  least = 1 if len(numbers) > 1 else 0
  if not 0 < width <= 4 or size < least or len(numbers) > 2:
    raise UserError(
      f'network {text!r} has no usable width or size; write name:width:size '
      'with a width in (0, 4] and a size in pixels, such as vgg16:0.25 or '
      'mobilenet:0.5:160'
    )
  return NetworkName(name, width, size)
