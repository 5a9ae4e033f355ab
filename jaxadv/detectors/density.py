"""A detector that asks how probable a picture is among clean ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.inputs import check_numbers
from jaxadv.models.pixelcnn import PixelCNN, bits_per_dim
from jaxadv.training import TrainConfig
from jaxadv.training.pixelcnn import (
  RECIPE,
  clean_pictures,
  fit_pixelcnn,
  measure_bits,
)
from jaxadv.types import (
  Batch,
  Detector,
  Images,
  Keys,
  PyTree,
  Scores,
  make_detector,
)


class DensityState(NamedTuple):
  """A density and what it thinks of the pictures it was trained on.

  Attributes:
    params: Weights of the PixelCNN++; `pixel_defend` takes the same.
    bits: float32[N], ascending, bits per dimension of the training pictures.
  """

  params: PyTree
  bits: jax.Array


def rank_among(
  module: PixelCNN, params: PyTree, images: np.ndarray
) -> DensityState:
  """Makes the detector's state from a density that is trained already.

  Args:
    module: The network.
    params: Its weights, from `fit_pixelcnn`.
    images: [N, H, W, C], uint8 or floating in [0, 1], the pictures that it was
      trained on, or some of them.

  Returns:
    The state.

  Raises:
    DataError: If the likelihood of a picture is NaN.
  """
  bits = measure_bits(module, params, images)
  check_numbers(bits, 'likelihoods of training pictures')
  return DensityState(params, jnp.asarray(np.sort(bits)))


def density_detector(
  module: PixelCNN,
  config: TrainConfig = RECIPE,
  *,
  rank: bool = True,
  mesh: jax.sharding.Mesh | None = None,
) -> Detector:
  """Makes the detector of PixelDefend: attacked pictures are improbable.

  With the log-likelihood L of a PixelCNN++ and its N training pictures x_i,
  p = (1 + #{i: L(x_i) <= L(x)}) / (N + 1) would be uniform for clean
  pictures, and is small for attacked ones. It never asks the classifier, and
  learns from clean pictures only.

  Args:
    module: The network, for the channels of the pictures.
    config: Epochs, batch size, optimizer and schedule.
    rank: Whether the score is -p, in [-1, -1 / (N + 1)]; else it is -L in
      bits per dimension, which separates pictures that are all less probable
      than any training picture.
    mesh: Splits training batches over its devices.

  Returns:
    A `Detector`. Pictures are rounded to 8 bit first. The surrogate is -L in
    bits per dimension, whose gradient passes the rounding as if it were not
    there.

  References:
    Song et al., PixelDefend, 2018, https://arxiv.org/abs/1710.10766,
    section 4.3; Li et al., Are L2 Adversarial Examples Intrinsically
    Different?, 2020, section 4 (DET_PD).
  """

  def fit(
    key: jax.Array,
    classifier: Any,
    train: Iterable[Batch],
    valid: Iterable[Batch],
  ) -> DensityState:
    del classifier, valid  # Nothing is selected on validation pictures.
    images = clean_pictures(train)
    params = fit_pixelcnn(key, module, images, config=config, mesh=mesh).params
    return rank_among(module, params, images)

  def bits(
    keys: Keys | None,
    classifier: Any,
    state: DensityState,
    images: Images,
  ) -> Scores:
    del keys, classifier
    return bits_per_dim(module, state.params, images)

  def score(
    keys: Keys | None,
    classifier: Any,
    state: DensityState,
    images: Images,
  ) -> Scores:
    found = bits(keys, classifier, state, images)
    # L(x_i) <= L(x) where a training picture takes at least as many bits.
    fewer = jnp.searchsorted(state.bits, found, side='left')
    num = state.bits.shape[0]
    # Cast, or 64-bit JAX makes it float64. NaN would rank as improbable.
    rank = -(1.0 + num - fewer.astype(jnp.float32)) / (num + 1)
    return jnp.where(jnp.isnan(found), jnp.nan, rank)

  return make_detector(fit, score if rank else bits, bits)
