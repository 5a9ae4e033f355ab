"""What stands in the addresses of the pieces that experiments keep."""

import dataclasses

import numpy as np
import pytest

from experiments.common import attacked as common
from experiments.common.networks import Network
from experiments.connection import pictures
from experiments.connection.config import get_config
from experiments.gcd import pictures as gcd
from experiments.gcd.config import get_config as gcd_config
from jaxadv.data.sources import pictures_from_arrays
from jaxadv.storage import Cache, code_version

CLEAN = pictures_from_arrays(
  np.zeros((6, 8, 8, 3), np.uint8),
  np.arange(6) % 2,
  class_names=('a', 'b'),
  name='some',
)
MOVED = CLEAN._replace(source=CLEAN.source + np.int32(10))


class Asked(Exception):
  """Instead of a piece, its address."""


class Addresses(Cache):
  """A cache that makes nothing."""

  def get_or_make(self, unit, version, config, make, *, alone=False):
    raise Asked(self.entry(unit, version, config), version)


def address(ask, *arguments):
  with pytest.raises(Asked) as asked:
    ask(*arguments)
  return asked.value.args


def attacked(clean, config):
  victim = Network('vgg11', None, None, 'weights', 1.0)
  cache = Addresses('nowhere')
  return address(
    pictures._attacked, config, cache, 'fgsm', {'epsilon': 0.1}, victim, clean
  )


def attacked_gcd(clean, config):
  victim = Network('vgg11', None, None, 'weights', 1.0)
  sides = dict.fromkeys(('train', 'valid', 'test'), clean)
  cache = Addresses('nowhere')
  return address(gcd.attacked_pictures, config, cache, 'fgsm', victim, sides)


@pytest.mark.parametrize(
  'ask, get', [(attacked, get_config), (attacked_gcd, gcd_config)]
)
def test_sets_of_other_source_ids_or_seeds_are_others(ask, get):
  """Pictures that are equal but for their ids have other draws and ids."""
  config = get('quick')
  first, version = ask(CLEAN, config)
  assert first == ask(CLEAN, config)[0]
  assert CLEAN.fingerprint == MOVED.fingerprint
  other = dataclasses.replace(config, seed=config.seed + 1)
  assert len({first, ask(MOVED, config)[0], ask(CLEAN, other)[0]}) == 3
  assert version == code_version(common.__name__)
