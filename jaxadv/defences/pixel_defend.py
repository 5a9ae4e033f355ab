"""PixelDefend: moves a picture to where clean ones are more probable."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.models.pixelcnn import (
  NUM_LEVELS,
  PixelCNN,
  in_raster_order,
  log_probabilities,
)
from jaxadv.training import TrainConfig
from jaxadv.training.pixelcnn import RECIPE, clean_pictures, fit_pixelcnn
from jaxadv.types import Batch, Images, Keys, Purifier, PyTree, make_purifier
from jaxadv.units import to_float, to_uint8
from jaxadv.utils import check_range


def pixel_defend(
  module: PixelCNN,
  radius: int = 16,
  config: TrainConfig = RECIPE,
  *,
  mesh: jax.sharding.Mesh | None = None,
) -> Purifier:
  """Makes the purifier of PixelDefend.

  In raster order, and red before green before blue, every channel is set to
  the most probable level within `radius` of its own, given the pixels and
  channels that are purified already. Of equally probable levels the nearest
  is taken. The whole batch goes in one compiled loop over pixels, at the cost
  that `jaxadv.models.pixelcnn.in_raster_order` tells.

  Args:
    module: The network, for the channels of the pictures.
    radius: Largest change in levels, a whole number in [0, 255]; the levels
      it can reach are cut to [0, 255]. 16 is the paper's for CIFAR-10.
    config: How the PixelCNN++ is trained.
    mesh: Splits training batches over its devices.

  Returns:
    A `Purifier`, deterministic; its state are the weights of the PixelCNN++
    (`fit_pixelcnn`, or `params` of the state of `density_detector`). Pictures
    are rounded to 8 bit first and have 8 bit afterwards, so no gradient
    passes: attack it through `jaxadv.attacks.adaptive.bpda`.

  Raises:
    UserError: If the radius lies outside [0, 255].

  Departs from the paper: no adaptive form, which leaves pictures that are
  probable enough as they are; a detector's score can decide that outside.

  References:
    Song et al., PixelDefend, 2018, https://arxiv.org/abs/1710.10766,
    section 5 and algorithm 1.
  """
  check_range('radius', radius, 0, NUM_LEVELS - 1)
  # By distance: of equal values argmax takes the first.
  changes = np.array(sorted(range(-radius, radius + 1), key=abs), np.float32)

  def choose(parameters: Any, levels: jax.Array) -> jax.Array:
    candidates = jnp.clip(levels[..., None] + changes, 0, NUM_LEVELS - 1)
    for channel in range(levels.shape[-1]):
      own = slice(channel, channel + 1)
      found = log_probabilities(parameters, levels, candidates[:, own], own)
      best = jnp.argmax(found, axis=-1, keepdims=True)
      level = jnp.take_along_axis(candidates[:, own], best, axis=-1)
      # To argmax a NaN is the most probable.
      level = jnp.where(jnp.isnan(found).any(-1, keepdims=True), jnp.nan, level)
      levels = levels.at[:, own].set(level[..., 0])
    return levels

  def fit(
    key: jax.Array,
    classifier: Any,
    train: Iterable[Batch],
    valid: Iterable[Batch],
  ) -> PyTree:
    del classifier, valid  # Nothing is selected on validation pictures.
    images = clean_pictures(train)
    return fit_pixelcnn(key, module, images, config=config, mesh=mesh).params

  def purify(
    keys: Keys | None, classifier: Any, state: PyTree, images: Images
  ) -> Images:
    del keys, classifier  # Nothing is random, and no class is asked for.
    levels = to_uint8(images).astype(jnp.float32)
    purified = in_raster_order(module, state, levels, choose)
    levels = to_float(purified.astype(jnp.uint8))
    return jnp.where(jnp.isnan(purified), jnp.nan, levels)

  return make_purifier(fit, purify)
