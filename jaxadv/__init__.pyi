from . import attacks, data, defences, detectors, models, norms
from .attacks.evaluate import evaluate
from .classifier import from_function, from_linen, from_nnx

__version__: str
__all__ = [
  '__version__',
  'attacks',
  'data',
  'defences',
  'detectors',
  'evaluate',
  'from_function',
  'from_linen',
  'from_nnx',
  'models',
  'norms',
]
