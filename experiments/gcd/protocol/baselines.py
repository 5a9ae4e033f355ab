"""The detectors of others: DET_TWS, DET_PD and DET_MDS, in the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.gcd.protocol import study as studies
from experiments.gcd.protocol.detection import score_pictures, test_images
from experiments.gcd.protocol.study import Attacked, Study
from jaxadv import models, storage
from jaxadv.data import pipeline, sources
from jaxadv.data.sources import Pictures
from jaxadv.detectors.density import density_detector, rank_among
from jaxadv.detectors.mahalanobis import mahalanobis
from jaxadv.detectors.tws import tune, tws
from jaxadv.errors import UserError
from jaxadv.models.pixelcnn import PixelCNN, init_pixelcnn
from jaxadv.models.weights import native
from jaxadv.training.pixelcnn import RECIPE, fit_pixelcnn, measure_bits
from jaxadv.types import Detector

# Clean pictures that TWS is tuned on, and that the rank of DET_PD is among.
NUM_TUNED = 30
NUM_RANKED = 500
# What the last epoch of a converged training gains at most, as a share.
CONVERGED = 0.01
# Pictures that DET_MDS takes means and covariances from, at most.
NUM_REFERENCE = 2000
# Stages of the victim that DET_MDS looks at, at most.
NUM_LAYERS = 5


def fitted_scores(
  study: Study, name: str, made_from: Any, tested: Sequence[str], n: int, fit
) -> dict[str, np.ndarray]:
  """Scores test pictures by a detector that is fitted if nobody has yet.

  Args:
    study: The study.
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
    'victim': study.victim.identity,
    'tested': {
      k: storage.fingerprint(test_images(study, k)[:n]) for k in kinds
    },
  }

  def make(folder, work):
    del work
    detector, state, key = fit()
    scores = {
      kind: score_pictures(
        detector,
        study.victim.classifier,
        state,
        test_images(study, kind)[:n],
        key,
      )
      for kind in kinds
    }
    storage.write_npz(folder / 'scores.npz', **scores)

  version = storage.code_version(__name__)
  folder = study.cache.get_or_make('gcd_baseline', version, made_from, make)
  return storage.read_npz(folder / 'scores.npz')


def tws_scores(study: Study, tested: Sequence[str]) -> dict[str, np.ndarray]:
  """Scores by the three criteria, tuned on validation pictures of all attacks.

  The clean distributions come from training pictures.
  """
  config = study.config
  settings: dict[str, Any] = {
    # What an Linf attack of the run may change.
    'radius': max(config.epsilon, 0.03),
    'targeted_cap': config.tws_cap_t,
    'untargeted_cap': config.tws_cap,
  }
  clean = pipeline.stored(study.clean['train'])
  several = studies.detector_batches(
    study, studies.teachable(study), 'valid'
  ).batch
  kinds = np.asarray(several.kind) != 0
  rows = [np.flatnonzero(kinds == side)[:NUM_TUNED] for side in (False, True)]
  tuned_on = pipeline.select(jax.device_get(several), np.concatenate(rows))

  key = studies.stream(config, 'tws')

  def fit():
    found = tune(
      key,
      study.victim.classifier,
      pipeline.batches(tuned_on, 2 * NUM_TUNED),
      **settings,
    )
    detector = tws(**found._asdict(), **settings)
    batches = pipeline.batches(clean, studies.BATCH)
    state = detector.fit(key, study.victim.classifier, batches, batches)
    return detector, state, key

  made_from = [
    settings,
    storage.fingerprint(clean),
    storage.fingerprint(tuned_on),
    key,
  ]
  return fitted_scores(
    study, 'tws', made_from, tested, config.tws_pictures, fit
  )


def density_pictures(study: Study) -> Pictures:
  """Takes the pictures that PixelCNN++ learns from."""
  count = study.config.pixelcnn_pictures or len(study.train.labels)
  return sources.subset(study.train, slice(0, count))


def density(study: Study) -> tuple[PixelCNN, Any, dict[str, float]]:
  """Trains PixelCNN++ on clean pictures, or finds it in the cache.

  Returns:
    The network, its weights, and bits per dimension of 'train' and 'test'
    pictures (the first `NUM_RANKED` of them), and by how much they fell in the
    'last epoch' of training.
  """
  config = study.config
  module = PixelCNN(
    channels=study.train.images.shape[-1],
    num_filters=config.pixelcnn_filters,
    num_blocks=config.pixelcnn_blocks,
    dropout=config.pixelcnn_dropout,
  )
  pictures = density_pictures(study)
  recipe = dataclasses.replace(
    RECIPE,
    num_epochs=config.pixelcnn_epochs,
    batch_size=config.pixelcnn_batch,
    learning_rate=config.pixelcnn_rate,
  )
  key = studies.stream(config, 'pixelcnn')
  made_from = {
    'module': module,
    'recipe': recipe,
    'pictures': pictures.fingerprint,
    'test': study.clean['test'].fingerprint,
    'key': key,
  }

  def make(folder, work):
    params, history = fit_pixelcnn(
      key,
      module,
      pictures.images,
      config=recipe,
      mesh=studies.mesh(),
      checkpoint_dir=work,
    )
    native.write_variables(folder / 'params.npz', params)
    # A single epoch gained all there is.
    *_, before, last = 0.0, *history['train_loss']
    bits = {
      'train': pictures.images[:NUM_RANKED],
      'test': study.clean['test'].images[:NUM_RANKED],
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
  folder = study.cache.get_or_make('pixelcnn', version, made_from, make)
  template = jax.eval_shape(
    lambda: init_pixelcnn(jax.random.key(0), module)['params']
  )
  params = native.read_variables(folder / 'params.npz', template)
  return module, params, storage.read_json(folder / 'bits.json')


def density_doubts(study: Study) -> list[str]:
  """Says whether PixelCNN++ was still learning when its training ended."""
  _, _, bits = density(study)
  gain = bits['last epoch'] / bits['train']
  if gain < CONVERGED:
    return []
  return [
    f'PixelCNN++ has not converged: its last epoch gained {gain:.1%} of '
    f'{bits["train"]:.2f} bits per dimension'
  ]


def density_scores(
  study: Study, tested: Sequence[str]
) -> dict[str, np.ndarray]:
  """Scores by bits per dimension: how improbable a picture is.

  The rank among training pictures, which the paper takes, orders pictures
  alike but for ties.
  """
  module, params, _ = density(study)
  ranked = density_pictures(study).images[:NUM_RANKED]

  def fit():
    detector = density_detector(module, rank=False)
    return detector, rank_among(module, params, ranked), None

  made_from = [storage.fingerprint(params), module]
  n = study.config.num_test
  return fitted_scores(study, 'pd', made_from, tested, n, fit)


def reference_pictures(study: Study) -> Pictures:
  """Takes the pictures that DET_MDS has its means and covariances from.

  The victim has learnt from them, but nothing else of the study comes from
  them: a picture that gave the covariance lies too near to it. They follow
  the clean pictures of the study in the training split.

  Raises:
    UserError: If none is left.
  """
  used = np.concatenate([study.clean[s].source for s in ('train', 'valid')])
  first = 1 + np.flatnonzero(np.isin(study.train.source, used)).max()
  found = sources.subset(study.train, slice(first, first + NUM_REFERENCE))
  if not len(found.labels):
    raise UserError(
      f'all {first} training pictures are taken by --num_train and '
      '--num_valid, which leaves DET_MDS none to estimate covariances from; '
      'lower them'
    )
  return found


def mahalanobis_of(study: Study) -> Detector:
  """Makes DET_MDS; keep it, since another one compiles anew."""
  reference = pipeline.batches(reference_pictures(study), studies.BATCH)
  return mahalanobis(layers_of(study), reference=reference)


def mahalanobis_scores(
  study: Study,
  detector: Detector,
  taught: Sequence[str],
  tested: Sequence[str],
) -> dict[str, np.ndarray]:
  """Scores by the distance to the classes in several layers of the victim.

  Args:
    study: The study.
    detector: From `mahalanobis_of`.
    taught: Attacks that weigh the layers.
    tested: Attacks to be tested on.

  Returns:
    {'clean' | attack: float32[N]}.
  """
  train = studies.detector_batches(study, taught, 'train')
  valid = studies.detector_batches(study, taught, 'valid')

  key = studies.stream(study.config, f'mds {" ".join(taught)}')

  def fit():
    state = detector.fit(key, study.victim.classifier, train, valid)
    return detector, state, None

  made_from = [
    layers_of(study),
    reference_pictures(study).fingerprint,
    storage.fingerprint(train.batch),
    storage.fingerprint(valid.batch),
    key,
  ]
  n = study.config.num_test
  return fitted_scores(study, 'mds', made_from, tested, n, fit)


def enlarged(study: Study, attack: str, times: int) -> Study:
  """Gives the study with changes of an attack that many times as large."""

  def enlarge(side: str) -> Attacked:
    found, clean = study.attacked[attack][side], study.clean[side].images
    change = times * (found.images.astype(np.int32) - clean)
    images = np.clip(clean + change, 0, 255).astype(np.uint8)
    return found._replace(images=images)

  sides = {side: enlarge(side) for side in study.attacked[attack]}
  return study._replace(attacked=study.attacked | {attack: sides})


def layers_of(study: Study) -> tuple[str, ...]:
  """Names stages of the victim to look at, from the first to the last."""
  *names, _ = models.stage_names(study.victim.module)  # The last is the head.
  places = np.linspace(0, len(names) - 1, min(NUM_LAYERS, len(names)))
  return tuple(names[round(place)] for place in places)
