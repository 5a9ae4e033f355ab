"""Speed of the detectors: sensitivity against a bare gradient, scores a second.

`python -m benchmarks.detectors` prints two tables. The classifier and the
networks of the detectors are VGG11 with random weights, fitted for one epoch
on generated pictures: scores take the same time whatever was learnt. All
candidates run in turn, over and over, and medians are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.layers import medians
from jaxadv import losses, models
from jaxadv.classifier import Classifier, from_linen
from jaxadv.data import pipeline
from jaxadv.data.fake import generated_pictures
from jaxadv.detectors.baselines import (
  confidence_detector,
  log_sensitivity_detector,
)
from jaxadv.detectors.density import density_detector
from jaxadv.detectors.entropy_ensemble import entropy_ensemble
from jaxadv.detectors.input_sensitivity import (
  input_sensitivity,
  input_sensitivity_detector,
)
from jaxadv.detectors.mahalanobis import mahalanobis_detector
from jaxadv.detectors.network import network_detector
from jaxadv.detectors.pixels import pixel_detector
from jaxadv.detectors.saliency import saliency_detector
from jaxadv.detectors.tws import tws_detector
from jaxadv.models.pixelcnn import PixelCNN
from jaxadv.training import TrainConfig
from jaxadv.types import Batch, Detector, picture_keys
from jaxadv.utils import keep_freed_memory

_RECIPE = TrainConfig(num_epochs=1, batch_size=32, schedule='constant')


class Subject(NamedTuple):
  """What is scored, and what detectors are fitted on."""

  classifier: Classifier
  images: jax.Array
  labels: jax.Array
  batches: Iterable[Batch]


def subject(width: float, size: int, batch: int) -> Subject:
  """Makes a classifier and pictures, half of them noisy, called attacked."""
  module = models.build(
    'vgg11', num_classes=10, width=width, image_size=size, batch_norm=True
  )
  variables = models.init_variables(jax.random.key(0), module, size)
  clean = generated_pictures(max(batch, 32), size)
  noise = np.random.default_rng(0).integers(0, 9, clean.images.shape, np.uint8)
  # Added where it cannot overflow.
  noisy = clean._replace(images=np.minimum(clean.images, 246) + noise)
  both = [pipeline.stored(clean), pipeline.stored(noisy, kind=1)]
  batches = pipeline.batches(pipeline.concatenate(both), batch)
  first = next(iter(batches))
  return Subject(
    from_linen(module, variables), first.images, first.labels, batches
  )


def sensitivity_runs(over: Subject) -> dict[str, Callable[[], object]]:
  """Compiled maps and norms, beside one input-gradient of the same batch."""

  def bare(classifier, images):
    total = lambda x: losses.cross_entropy(classifier(x), over.labels).sum()
    return jax.grad(total)(images)

  def run(function):
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(over.classifier, over.images))

  return {
    'input-gradient': run(bare),
    'input sensitivity': run(lambda c, x: tuple(input_sensitivity(c, x))),
  }


def detectors(width: float, size: int) -> dict[str, Detector]:
  """The detectors by name, their networks of the classifier's width."""
  net = models.build(
    'vgg11', num_classes=1, width=width, image_size=size, batch_norm=True
  )
  on_maps, on_pixels = (
    input_sensitivity_detector(net, _RECIPE),
    pixel_detector(net, _RECIPE),
  )
  return {
    'confidence': confidence_detector(),
    'log_sensitivity': log_sensitivity_detector(),
    'network': network_detector(width=width, image_size=size, config=_RECIPE),
    'pixels': on_pixels,
    'input_sensitivity': on_maps,
    'saliency': saliency_detector(net, _RECIPE),
    'entropy_ensemble': entropy_ensemble(on_maps, on_pixels),
    'mahalanobis': mahalanobis_detector(
      tuple(f'block{n}' for n in range(1, 6))
    ),
    # Random weights are crossed after few steps or never: caps as in the
    # small variant of the gcd experiments.
    'tws': tws_detector(targeted_cap=200, untargeted_cap=100),
    'density': density_detector(PixelCNN(16, 1), _RECIPE),
  }


def score_runs(
  over: Subject, chosen: dict[str, Detector]
) -> dict[str, Callable[[], object]]:
  """Compiled scores of one batch by fitted detectors."""
  keys = picture_keys(jax.random.key(1), jnp.arange(len(over.images)))

  def run(detector: Detector) -> Callable[[], object]:
    state: Any = detector.fit(
      jax.random.key(0), over.classifier, over.batches, over.batches
    )
    compiled = jax.jit(detector.score)
    return lambda: jax.block_until_ready(
      compiled(keys, over.classifier, state, over.images)
    )

  return {name: run(detector) for name, detector in chosen.items()}


def main(arguments: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--width', type=float, default=0.25)
  parser.add_argument('--size', type=int, default=32, help='side in pixels')
  parser.add_argument('--batch', type=int, default=128)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--detectors', help='of those of the table; default all')
  flags = parser.parse_args(arguments)
  known = detectors(flags.width, flags.size)
  names = flags.detectors.split(',') if flags.detectors else list(known)
  if unknown := set(names) - set(known):
    parser.error(
      f'there is no detector {", ".join(sorted(unknown))}; give any of '
      f'{", ".join(known)}'
    )
  keep_freed_memory()
  over = subject(flags.width, flags.size, flags.batch)
  seconds = medians(sensitivity_runs(over), flags.repeats)
  bare = seconds['input-gradient']
  print(
    f'VGG11 of width {flags.width}, batch {flags.batch}, '
    f'{flags.size}x{flags.size}, {jax.default_backend()}, jax {jax.__version__}'
  )
  for name, value in seconds.items():
    print(f'{name:20} {1e3 * value:9.1f} ms {value / bare:8.2f}x')
  runs = score_runs(over, {name: known[name] for name in names})
  print(f'{"detector":20} {"scores a second":>15} {"x input-gradient":>17}')
  for name, value in medians(runs, flags.repeats).items():
    print(f'{name:20} {flags.batch / value:15.0f} {value / bare:17.2f}')


if __name__ == '__main__':
  main()
