"""Noise that natural filters find in a picture, an attack without a model."""

from __future__ import annotations

from jaxadv.attacks.wrap import one_shot
from jaxadv.perturbations.noise import filter_noise
from jaxadv.types import Attack


def ni(sign: int, *, filter: str = 'gaussian', gain: float = 1.0) -> Attack:
  """Adds (NI+) or subtracts (NI-) what a natural filter removes.

  A one-shot attack that does not look at the classifier, which only judges
  success; many pictures remain correctly classified.

  Args:
    sign: 1 for NI+, -1 for NI-.
    filter: 'gaussian', 'laplacian', 'integral', or 'mixed' (one drawn for
      each picture); see `filter_noise`.
    gain: Factor on the noise, at least 0.

  Returns:
    An `Attack`. A row without success holds the filtered picture.

  Raises:
    UserError: If the sign or filter is unknown, or gain is negative.

  References:
    Agarwal et al., Exploring Robustness Connection between Artificial and
    Natural Adversarial Examples, CVPR workshops 2022, section 3 (NI+, NI-).
  """
  return one_shot(filter_noise(sign, filter=filter, gain=gain))
