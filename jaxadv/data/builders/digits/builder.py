"""Builds the digits set from what scikit-learn carries; no download."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from jaxadv.data import images

SIZE = 32


class Builder(tfds.core.GeneratorBasedBuilder):
  """1,797 handwritten digits of 8x8 pixels, shown at 32x32 in three channels.

  The 17 grey levels are stretched to 0..255 and the pictures enlarged by
  `images.resize`. The one split on disk is `train`; TFDS reserves `all` for
  the union of the splits, which here is the same.

  References:
    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI
    Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49 (its
    test part, as in scikit-learn).
  """

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='Handwritten digits of scikit-learn, 8x8 enlarged to 32x32.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(
            shape=(SIZE, SIZE, 3), encoding_format='png'
          ),
          'label': tfds.features.ClassLabel(names=[str(d) for d in range(10)]),
        }
      ),
      supervised_keys=('image', 'label'),
      homepage='https://doi.org/10.24432/C50P49',
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # Nothing to download.
    return {'train': self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    pictures = images.with_channels(images.resize(grey, SIZE), 3)
    for index, (pixels, label) in enumerate(
      zip(pictures, digits.target, strict=True)
    ):
      yield index, {'image': images.encode(pixels), 'label': int(label)}
