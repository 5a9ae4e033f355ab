"""Natural adversarial pictures, found rather than made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from scipy import ndimage

from jaxadv.classifier import Classifier, predict
from jaxadv.data import images as image_tools
from jaxadv.data.pipeline import batches
from jaxadv.data.sources import Pictures
from jaxadv.errors import UserError
from jaxadv.inputs import check_numbers
from jaxadv.saliency.gradcam import gradcam
from jaxadv.sets.types import AdversarialSet, versions, weights_fingerprint


def natural(
  references: Sequence[Classifier],
  pictures: Pictures,
  n: int | None = None,
  *,
  batch_size: int = 128,
) -> AdversarialSet:
  """Keeps the pictures that a reference classifier misclassifies.

  Args:
    references: Classifiers that saw none of `pictures` in training; the first
      is neither the victim nor a detector's backbone.
    pictures: Held-out pictures.
    n: How many to keep: the first ones that the first reference misclassifies,
      then those of the next ones' errors, until there are enough; None keeps
      all errors.
    batch_size: Rows of a batch; no result depends on it.

  Returns:
    An `AdversarialSet` of kind 'natural'; its victims are the references, so
    every row is a success.

  Raises:
    UserError: If the references misclassify fewer than `n`.

  Departs from the paper: there the pictures also come from other photo sites
  and are looked through by people.

  References:
    Hendrycks et al., Natural Adversarial Examples, 2021,
    https://arxiv.org/abs/1907.07174, section 3.
  """
  errors = [
    np.flatnonzero(
      predict(reference, pictures.images, batch_size).argmax(-1)
      != pictures.labels
    )
    for reference in references
  ]
  # Each picture once, in the order in which it is first found.
  found, place = np.unique(np.concatenate(errors), return_index=True)
  rows = found[np.argsort(place)]
  if n is not None and len(rows) < n:
    raise UserError(
      f'the reference misclassifies {len(rows)} of {len(pictures.labels)} '
      f'pictures but {n} natural ones are wanted; give more held-out pictures, '
      'a smaller n or a weaker reference'
    )
  rows = rows[:n]
  success = np.ones(len(rows), bool)
  return AdversarialSet(
    images=pictures.images[rows],
    labels=pictures.labels[rows],
    source=pictures.source[rows],
    success_float=success,
    success=success,
    kind='natural',
    class_names=pictures.class_names,
    provenance={
      'victim': ', '.join(weights_fingerprint(r.variables) for r in references),
      'data': pictures.fingerprint,
      'data_name': pictures.name,
      'versions': versions(),
    },
  )


def natural_plus(
  references: Sequence[Classifier],
  front: Callable[[jax.Array], jax.Array],
  back: Callable[[jax.Array], jax.Array],
  found: AdversarialSet,
  *,
  batch_size: int = 128,
) -> AdversarialSet:
  """Crops natural adversarial pictures to what the reference looks at.

  Stands in for ImageNet-A-Plus, whose objects were cropped by hand: Grad-CAM
  for the true class says where the object is.

  Args:
    references: The classifiers that `found` was found with.
    front: First half of the one that says where objects are, images to a
      convolutional layer; see `gradcam`.
    back: Its second half, to logits.
    found: What `natural` returned.
    batch_size: Rows of a batch; no result depends on it.

  Returns:
    An `AdversarialSet` of kind 'natural_plus' with the sources of `found`; a
    row is a success where the first reference that errs on the whole picture
    errs on the crop too.

  Raises:
    DataError: If a saliency map is NaN.

  References:
    Li et al., ImageNet-A-Plus, 2021, https://arxiv.org/abs/2102.11731.
  """
  explain = jax.jit(lambda images, labels: gradcam(front, back, images, labels))
  maps = np.concatenate(
    [
      np.asarray(explain(batch.images, batch.labels))
      for batch in batches(found, batch_size)
    ]
  )[: len(found.labels)]
  cropped = found._replace(
    images=crop_to_saliency(found.images, maps), kind='natural_plus'
  )
  whole, crops = (
    np.stack(
      [
        predict(reference, images, batch_size).argmax(-1) != found.labels
        for reference in references
      ]
    )
    for images in (found.images, cropped.images)
  )
  success = crops[whole.argmax(0), np.arange(len(found.labels))]
  return cropped._replace(success_float=success, success=success)


def crop_to_saliency(
  images: np.ndarray,
  maps: np.ndarray,
  *,
  percentile: float = 80.0,
  margin: float = 0.15,
) -> np.ndarray:
  """Crops a square around the largest salient region and enlarges it.

  The region is the largest set of pixels above the percentile that touch
  along edges. The square is as long as the longer side of its bounding box
  plus the margin at both ends, and is moved to lie inside the picture.

  Args:
    images: uint8[N, H, W, C].
    maps: float32[N, H, W], larger where it matters.
    percentile: Of each map; what lies above it is salient.
    margin: Share of the longer side, added at both ends.

  Returns:
    uint8[N, S, S, C] with S the shorter side of the pictures, through
    `images.resize`. A picture whose map is constant is not cropped.

  Raises:
    DataError: If a map is NaN.
  """
  check_numbers(maps, 'saliency maps')
  size = min(images.shape[1:3])
  cropped = np.empty((len(images), size, size, images.shape[3]), np.uint8)
  for row, pixels, saliency in zip(cropped, images, maps, strict=True):
    window = _window(saliency, percentile, margin)
    row[:] = image_tools.resize(pixels[window][None], size)[0]
  return cropped


def _window(
  saliency: np.ndarray, percentile: float, margin: float
) -> tuple[slice, slice]:
  """Gives the square to crop."""
  regions, num_regions = ndimage.label(
    saliency > np.percentile(saliency, percentile)
  )
  if not num_regions:
    return slice(None), slice(None)
  largest = np.argmax(np.bincount(regions.ravel())[1:])
  box = ndimage.find_objects(regions)[largest]
  longer = max(side.stop - side.start for side in box)
  length = min(round(longer * (1 + 2 * margin)), *saliency.shape)
  starts = (
    min(max((side.start + side.stop - length) // 2, 0), extent - length)
    for side, extent in zip(box, saliency.shape, strict=True)
  )
  down, right = (slice(start, start + length) for start in starts)
  return down, right
