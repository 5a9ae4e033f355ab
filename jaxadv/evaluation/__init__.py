"""Measured whole and reported: a classifier's robustness, a folder's scores."""

from jaxadv.evaluation.folder import Detection, Scored, detect_folder
from jaxadv.evaluation.record import Measured
from jaxadv.evaluation.robustness import measure_robustness

__all__ = [
  'Detection',
  'Measured',
  'Scored',
  'detect_folder',
  'measure_robustness',
]
