"""Defences against adversarial pictures; each can be attacked itself."""

from jaxadv.defences.adversarial_training import Recipe, fit_adversarial
from jaxadv.defences.pixel_defend import pixel_defend
from jaxadv.defences.purified import purified
from jaxadv.defences.rectifier import fine_tune, guarded, rectified
from jaxadv.defences.total_variance import total_variance
from jaxadv.types import Purifier

__all__ = [
  'Purifier',
  'Recipe',
  'fine_tune',
  'fit_adversarial',
  'guarded',
  'pixel_defend',
  'purified',
  'rectified',
  'total_variance',
]
