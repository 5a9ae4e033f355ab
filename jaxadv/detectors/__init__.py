"""Detectors of adversarial pictures: factories of `Detector`."""

from jaxadv.detectors.backbone import backbone_detector
from jaxadv.detectors.baselines import (
  confidence_detector,
  log_sensitivity_detector,
)
from jaxadv.detectors.density import density_detector
from jaxadv.detectors.entropy_ensemble import entropy_ensemble
from jaxadv.detectors.fitted import FittedDetector, fit
from jaxadv.detectors.input_sensitivity import input_sensitivity_detector
from jaxadv.detectors.mahalanobis import mahalanobis_detector
from jaxadv.detectors.measure import Measured, measure
from jaxadv.detectors.network import network_detector
from jaxadv.detectors.pixels import pixel_detector
from jaxadv.detectors.saliency import saliency_detector
from jaxadv.detectors.saved import load, save
from jaxadv.detectors.tws import tws_detector
from jaxadv.types import Detector

__all__ = [
  'Detector',
  'FittedDetector',
  'Measured',
  'backbone_detector',
  'confidence_detector',
  'density_detector',
  'entropy_ensemble',
  'fit',
  'input_sensitivity_detector',
  'load',
  'log_sensitivity_detector',
  'mahalanobis_detector',
  'measure',
  'network_detector',
  'pixel_detector',
  'saliency_detector',
  'save',
  'tws_detector',
]
