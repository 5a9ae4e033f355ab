"""The detectors of others: DET_TWS, DET_PD and DET_MDS, in the cache."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.common import detectors as common
from experiments.common.detectors import score_pictures, test_images
from experiments.gcd.config import Config
from experiments.gcd.pictures import RunInputs, stream
from experiments.gcd.report import paper_dataset
from jaxadv import models, storage
from jaxadv.data import pipeline, sources
from jaxadv.data.sources import Pictures
from jaxadv.detectors import tws
from jaxadv.detectors.density import density_detector, rank_among
from jaxadv.detectors.mahalanobis import mahalanobis_detector
from jaxadv.errors import UserError
from jaxadv.models.pixelcnn import PixelCNN, init_pixelcnn
from jaxadv.models.weights import native
from jaxadv.sets.types import AdversarialSet
from jaxadv.training import mesh
from jaxadv.training.pixelcnn import RECIPE, fit_pixelcnn, measure_bits
from jaxadv.types import Detector, picture_keys

# What sigma and the step sizes of DET_TWS are chosen from; of equally good
# ones the first is taken, that of the fewest steps.
TWS_CHOICES = {
  'noise': (0.005, 0.01, 0.02, 0.05, 0.1),
  'targeted': (5e-2, 5e-3, 5e-4),
  'untargeted': (10.0, 1.0, 0.1),
}
# Rows that take steps until the slowest is done: few wait less.
TWS_BATCH = 20
# Clean pictures that the rank of DET_PD is among.
NUM_RANKED = 500
# What the last epoch of a converged training gains at most, as a share.
CONVERGED = 0.01
# What PixelCNN++ reaches in PixelDefend's paper, in bits per dimension, and how
# much more is still no other density.
PUBLISHED_BITS = {'CIFAR-10': 2.92}
SLACK_BITS = 1.1
# Pictures that DET_MDS takes means and covariances from, at most.
NUM_REFERENCE = 2000
# Stages of the victim that DET_MDS looks at, at most.
NUM_LAYERS = 5


def fitted_scores(
  inputs: RunInputs,
  name: str,
  made_from: Any,
  tested: Sequence[str],
  n: int,
  fit,
) -> dict[str, np.ndarray]:
  """Scores test pictures by a detector that is fitted if nobody has yet.

  Args:
    inputs: The inputs of the run.
    name: Of the detector.
    made_from: What its fit depends on, apart from the victim; its random key
      above all.
    tested: Attacks to be tested on, besides clean pictures.
    n: The first so many test pictures.
    fit: `() -> (detector, state, key)`.

  Returns:
    {'clean' | attack: float32[n]}.
  """
  kinds = ('clean', *tested)
  made_from = {
    'detector': name,
    'made_from': made_from,
    'victim': inputs.victim.fingerprint,
    'tested': {
      k: storage.fingerprint(test_images(inputs, k)[:n]) for k in kinds
    },
  }

  def make(folder, work):
    del work
    detector, state, key = fit()
    scores = {
      kind: score_pictures(
        detector,
        inputs.victim.classifier,
        state,
        test_images(inputs, kind)[:n],
        key,
      )
      for kind in kinds
    }
    storage.write_npz(folder / 'scores.npz', **scores)

  version = storage.code_version(__name__)
  folder = inputs.cache.get_or_make('gcd_baseline', version, made_from, make)
  return storage.read_npz(folder / 'scores.npz')


def tws_scores(
  inputs: RunInputs,
  parts: Sequence[str],
  trained_on: Sequence[str],
  tested: Sequence[str],
) -> dict[str, np.ndarray]:
  """Scores by criteria of DET_TWS, one alone or several with thresholds.

  Sigma, step sizes and thresholds are chosen on validation pictures, to which
  each attack gives as many. A criterion is measured once for each setting.

  Args:
    inputs: The inputs of the run.
    parts: Which of `tws.Criteria`.
    taught: Attacks to choose by.
    tested: Attacks to be tested on.

  Returns:
    {'clean' | attack: float32[n]}.
  """
  config = inputs.config
  settings = tws_settings(inputs, parts, trained_on)
  valid = _tws_valid(inputs, settings, trained_on, config.num_valid)
  score = _tws_rule(config, parts, *valid)
  return {
    kind: score(
      tws_criteria(inputs, settings, 'test', kind, config.tws_pictures)
    )
    for kind in ('clean', *tested)
  }


def tws_settings(
  inputs: RunInputs, parts: Sequence[str], trained_on: Sequence[str]
) -> dict[str, float]:
  """Chooses sigma and step sizes, by which attacks are found best together.

  Args:
    inputs: The inputs of the run.
    parts: Which of `tws.Criteria`.
    taught: Attacks to choose by; the mean of their AUCs decides.

  Returns:
    {part: its setting}; of equal ones the first.
  """
  config = inputs.config
  # Read once, not for every combination.
  columns = {
    (part, setting): _tws_valid(
      inputs, {part: setting}, trained_on, config.tws_tuned
    )
    for part in parts
    for setting in TWS_CHOICES[part]
  }

  def worth(settings: dict[str, float]) -> float:
    found = [columns[item] for item in settings.items()]
    # What has no setting is 0.
    measured, kind = found[0]
    for more, _ in found[1:]:
      measured = jax.tree.map(np.add, measured, more)
    score = _tws_rule(config, parts, measured, kind)
    return tws.mean_auc(score(measured), kind)

  choices = itertools.product(*(TWS_CHOICES[part] for part in parts))
  return max(
    (dict(zip(parts, values, strict=True)) for values in choices), key=worth
  )


def _tws_valid(
  inputs: RunInputs,
  settings: dict[str, float],
  trained_on: Sequence[str],
  n: int,
) -> tuple[tws.Criteria, np.ndarray]:
  """Measures n validation pictures of each kind: criteria and kinds."""
  kinds = ('clean', *trained_on)
  sides = [tws_criteria(inputs, settings, 'valid', kind, n) for kind in kinds]
  measured = jax.tree.map(lambda *columns: np.concatenate(columns), *sides)
  return measured, np.repeat(np.arange(len(kinds)), n)


def _tws_rule(
  config: Config, parts: Sequence[str], measured: tws.Criteria, kind: np.ndarray
) -> Callable[[tws.Criteria], np.ndarray]:
  """Gives the score by one criterion, or by thresholds of several."""
  if len(parts) == 1:
    return lambda criteria: getattr(criteria, parts[0])
  thresholds = tws.choose_thresholds(
    measured,
    kind,
    **{
      f'{part}_cap': _tws_cap(config, part) * (part in parts)
      for part in ('targeted', 'untargeted')
    },
  )
  return lambda criteria: np.asarray(tws.strictness(thresholds, criteria))


def tws_criteria(
  inputs: RunInputs, settings: dict[str, float], side: str, kind: str, n: int
) -> tws.Criteria:
  """Measures those criteria that have a setting; the others are 0.

  Args:
    inputs: The inputs of the run.
    settings: {part: its sigma or step size}.
    side: As of `tws_criterion`.
    kind: Likewise.
    n: Likewise.
  """
  columns: dict[str, Any] = dict.fromkeys(
    tws.Criteria._fields, np.zeros(n, np.float32)
  )
  for part, setting in settings.items():
    columns[part] = tws_criterion(inputs, part, setting, side, kind, n)
  return tws.Criteria(**columns)


def tws_criterion(
  inputs: RunInputs, part: str, setting: float, side: str, kind: str, n: int
) -> np.ndarray:
  """Measures a criterion, or finds it in the cache.

  Args:
    inputs: The inputs of the run.
    part: One of `tws.Criteria`.
    setting: Its sigma or step size.
    side: 'valid', where pictures that an attack had success with stand in for
      the others, or 'test'.
    kind: 'clean' or an attack.
    n: Number of pictures, the first of the side.

  Returns:
    float32[n].
  """
  config = inputs.config
  if kind == 'clean':
    pictures = pipeline.select(
      pipeline.stored(inputs.clean[side]), np.arange(n)
    )
  else:
    rows = np.arange(n)
    if side == 'valid':
      rows = common.training_rows(inputs, kind, side)[:n]
    pictures = common.attacked_batch(inputs, kind, side, rows)
  key = stream(config, 'tws')
  options = {
    'part': part,
    'radius': config.tws_radius,
    'cap': _tws_cap(config, part),
  }
  made_from = options | {
    'setting': setting,
    'victim': inputs.victim.fingerprint,
    'pictures': storage.fingerprint(pictures.images),
    # Draws of a picture go by its id.
    'source': pictures.source,
    'key': key,
  }

  def make(folder, work):
    del work
    measure = _tws_measure(**options)
    found = [
      measure(
        picture_keys(key, batch.source),
        inputs.victim.classifier,
        batch.images,
        setting,
      )[batch.mask]
      for batch in pipeline.batches(pictures, TWS_BATCH)
    ]
    storage.write_npz(folder / 'values.npz', values=np.concatenate(found))

  version = storage.code_version(__name__)
  folder = inputs.cache.get_or_make('gcd_tws', version, made_from, make)
  return storage.read_npz(folder / 'values.npz')['values']


@functools.cache
def _tws_measure(part: str, radius: float, cap: int):
  """Compiles a criterion: `(keys, classifier, images, setting) -> [B]`."""

  def measure(keys, classifier, images, setting):
    measured = tws.criteria(
      keys,
      classifier,
      images,
      sigma=setting,
      targeted_lr=setting,
      untargeted_lr=setting,
      radius=radius,
      targeted_cap=cap * (part == 'targeted'),
      untargeted_cap=cap * (part == 'untargeted'),
    )
    return getattr(measured, part)

  return jax.jit(measure)


def _tws_cap(config: Config, part: str) -> int:
  caps = {'targeted': config.tws_cap_t, 'untargeted': config.tws_cap}
  return caps.get(part, 0)


def density_pictures(inputs: RunInputs) -> Pictures:
  """Takes the pictures that PixelCNN++ learns from."""
  count = inputs.config.pixelcnn_pictures or len(inputs.train.labels)
  return sources.subset(inputs.train, slice(0, count))


def density(inputs: RunInputs) -> tuple[PixelCNN, Any, dict[str, float]]:
  """Trains PixelCNN++ on clean pictures, or finds it in the cache.

  Returns:
    The network, its weights, and bits per dimension of 'train' and 'test'
    pictures (the first `NUM_RANKED` of them), and by how much they fell in the
    'last epoch' of training.
  """
  config = inputs.config
  module = PixelCNN(
    channels=inputs.train.images.shape[-1],
    num_filters=config.pixelcnn_filters,
    num_blocks=config.pixelcnn_blocks,
    dropout=config.pixelcnn_dropout,
  )
  pictures = density_pictures(inputs)
  recipe = dataclasses.replace(
    RECIPE,
    num_epochs=config.pixelcnn_epochs,
    batch_size=config.pixelcnn_batch,
    learning_rate=config.pixelcnn_rate,
  )
  key = stream(config, 'pixelcnn')
  made_from = {
    'module': module,
    'recipe': recipe,
    'pictures': pictures.fingerprint,
    'test': inputs.clean['test'].fingerprint,
    'key': key,
  }

  def make(folder, work):
    params, history = fit_pixelcnn(
      key,
      module,
      pictures.images,
      config=recipe,
      mesh=mesh.all_devices(),
      checkpoint_dir=work,
    )
    native.write_variables(folder / 'params.npz', params)
    # A single epoch gained all there is.
    *_, before, last = 0.0, *history['train_loss']
    bits = {
      'train': pictures.images[:NUM_RANKED],
      'test': inputs.clean['test'].images[:NUM_RANKED],
    }
    storage.write_json(
      folder / 'bits.json',
      {
        k: float(measure_bits(module, params, v).mean())
        for k, v in bits.items()
      }
      | {'last epoch': abs(float(before - last))},
    )

  version = storage.code_version(__name__)
  folder = inputs.cache.get_or_make('pixelcnn', version, made_from, make)
  template = jax.eval_shape(
    lambda: init_pixelcnn(jax.random.key(0), module)['params']
  )
  params = native.read_variables(folder / 'params.npz', template)
  return module, params, storage.read_json(folder / 'bits.json')


def density_doubts(inputs: RunInputs) -> list[str]:
  """Says why PixelCNN++ may be a poor density, a sentence each."""
  _, _, bits = density(inputs)
  found = []
  gain = bits['last epoch'] / bits['train']
  if gain >= CONVERGED:
    found.append(
      f'PixelCNN++ has not converged: its last epoch gained {gain:.1%} of '
      f'{bits["train"]:.2f} bits per dimension'
    )
  least = PUBLISHED_BITS.get(paper_dataset(inputs), np.inf)
  if bits['test'] > SLACK_BITS * least:
    found.append(
      f'PixelCNN++ needs {bits["test"]:.2f} bits per dimension, that of '
      f"PixelDefend's authors {least:g}"
    )
  return found


def density_scores(
  inputs: RunInputs, tested: Sequence[str]
) -> dict[str, np.ndarray]:
  """Scores by bits per dimension: how improbable a picture is.

  The rank among training pictures, which the paper takes, orders pictures
  alike but for ties.
  """
  module, params, _ = density(inputs)
  ranked = density_pictures(inputs).images[:NUM_RANKED]

  def fit():
    detector = density_detector(module, rank=False)
    return detector, rank_among(module, params, ranked), None

  made_from = [storage.fingerprint(params), module]
  n = inputs.config.num_test
  return fitted_scores(inputs, 'pd', made_from, tested, n, fit)


def reference_pictures(inputs: RunInputs) -> Pictures:
  """Takes the pictures that DET_MDS has its means and covariances from.

  The victim has learnt from them, but nothing else of the study comes from
  them: a picture that gave the covariance lies too near to it. They follow
  the clean pictures of the study in the training split.

  Raises:
    UserError: If none is left.
  """
  used = np.concatenate([inputs.clean[s].source for s in ('train', 'valid')])
  first = 1 + np.flatnonzero(np.isin(inputs.train.source, used)).max()
  found = sources.subset(inputs.train, slice(first, first + NUM_REFERENCE))
  if not len(found.labels):
    raise UserError(
      f'all {first} training pictures are taken by --num_train and '
      '--num_valid, which leaves DET_MDS none to estimate covariances from; '
      'lower them'
    )
  return found


def mahalanobis_of(inputs: RunInputs) -> Detector:
  """Makes DET_MDS; keep it, since another one compiles anew."""
  reference = pipeline.batches(reference_pictures(inputs), common.BATCH)
  return mahalanobis_detector(layers_of(inputs), reference=reference)


def mahalanobis_scores(
  inputs: RunInputs,
  detector: Detector,
  trained_on: Sequence[str],
  tested: Sequence[str],
) -> dict[str, np.ndarray]:
  """Scores by the distance to the classes in several layers of the victim.

  Args:
    inputs: The inputs of the run.
    detector: From `mahalanobis_of`.
    taught: Attacks that weigh the layers.
    tested: Attacks to be tested on.

  Returns:
    {'clean' | attack: float32[N]}.
  """
  train = common.detector_batches(inputs, trained_on, 'train')
  valid = common.detector_batches(inputs, trained_on, 'valid')

  key = stream(inputs.config, f'mds {" ".join(trained_on)}')

  def fit():
    state = detector.fit(key, inputs.victim.classifier, train, valid)
    return detector, state, None

  made_from = [
    layers_of(inputs),
    reference_pictures(inputs).fingerprint,
    storage.fingerprint(train.batch),
    storage.fingerprint(valid.batch),
    key,
  ]
  n = inputs.config.num_test
  return fitted_scores(inputs, 'mds', made_from, tested, n, fit)


def enlarged(inputs: RunInputs, attack: str, times: int) -> RunInputs:
  """Gives the study with changes of an attack that many times as large."""

  def enlarge(side: str) -> AdversarialSet:
    found, clean = inputs.attacked[attack][side], inputs.clean[side].images
    change = times * (found.images.astype(np.int32) - clean)
    images = np.clip(clean + change, 0, 255).astype(np.uint8)
    return found._replace(images=images)

  sides = {side: enlarge(side) for side in inputs.attacked[attack]}
  return inputs._replace(attacked=inputs.attacked | {attack: sides})


def layers_of(inputs: RunInputs) -> tuple[str, ...]:
  """Names stages of the victim to look at, from the first to the last."""
  *names, _ = models.stage_names(inputs.victim.module)  # The last is the head.
  places = np.linspace(0, len(names) - 1, min(NUM_LAYERS, len(names)))
  return tuple(names[round(place)] for place in places)
