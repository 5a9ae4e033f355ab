"""Detectors of a run: its inputs, and a cell after the other.

A cell is one backbone and one seed: all of its detectors, trained in one
compiled program and scored on every kind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.controls import shuffled_labels
from experiments.common.networks import Network
from experiments.common.options import cache_dir
from experiments.common.runner import CellCode, ReportProgress
from experiments.connection import features, networks, pictures
from experiments.connection.config import Config, weight_file
from experiments.connection.matrix import SHUFFLED_WITH, CellScores
from jaxadv import models, storage
from jaxadv.classifier import Classifier
from jaxadv.data import pipeline
from jaxadv.data.sources import Pictures
from jaxadv.detectors import backbone as detectors
from jaxadv.detectors import saved
from jaxadv.metrics.estimates import auc_estimate
from jaxadv.models.names import parse_network
from jaxadv.models.pretrained import load_classifier
from jaxadv.models.weights import native
from jaxadv.runs import Cell, stream
from jaxadv.storage import Cache, fingerprint
from jaxadv.training import FitResult, TrainConfig, mesh

# Train, validate (a tenth of the training half) and test.
SHARES = (0.45, 0.05, 0.5)


class RunInputs(NamedTuple):
  """What a run has made before its cells.

  Attributes:
    config: The config of the run.
    cache: Where its pieces are kept.
    train: Pictures that victim and backbones learn from.
    heldout: Pictures that the rest is drawn from.
    collection: Clean, attacked and control pictures.
    workdir: Folder of the run.
    kept: The features of the last backbone; see `pool_features`.
  """

  config: Config
  cache: Cache
  train: Pictures
  heldout: Pictures
  collection: pictures.Collection
  workdir: Path
  kept: dict[Any, features.Features]


def cells(config: Config) -> list[Cell]:
  """Lists the cells of a run: every backbone with every seed."""
  return [
    Cell(
      f'{network.replace(":", "-")}-seed{seed}',
      {'network': network, 'seed': seed},
    )
    for network in config.backbones
    for seed in range(config.num_seeds)
  ]


def prepare_inputs(
  config: Config, workdir: str, report_progress: ReportProgress
) -> RunInputs:
  """Makes or finds everything that the cells share.

  Args:
    config: The config of the run.
    workdir: Its folder; the cache lies beside it unless an option says
      otherwise.
    report_progress: Called with a few words before each piece of work.

  Returns:
    The inputs.

  Raises:
    UserError: If what was asked for cannot be.
    DataError: If data on disk are broken.
  """
  cache = Cache(cache_dir(config, workdir))
  report_progress('data')
  # A file that does not fit is to be known before hours of work.
  for network in networks.networks_of(config):
    path = weight_file(config, network)
    if path:
      load_classifier(parse_network(network), config.image_size, path)
  train, heldout = pictures.load_pictures(config, cache)
  collection = pictures.collect(config, cache, train, heldout, report_progress)
  return RunInputs(config, cache, train, heldout, collection, Path(workdir), {})


def backbone_design(
  inputs: RunInputs, cell: Cell
) -> tuple[Network, detectors.Design]:
  """Makes or finds a cell's backbone, and says how detectors stand on it."""
  network = networks.backbone(
    inputs.config,
    inputs.cache,
    cell.settings['network'],
    inputs.train,
    inputs.heldout,
    cell.settings['seed'],
  )
  known = models.BACKBONES[network.name]
  return network, detectors.Design(
    network.module,
    frozen_until=known.split,
    last_stage=known.features,
    batch_norm=network.batch_norm,
  )


def run_cell(
  inputs: RunInputs, cell: Cell, report_progress: ReportProgress
) -> CellScores:
  """Trains and scores the detectors of a cell, or finds them in the cache.

  Args:
    inputs: The inputs of the run.
    cell: One of `cells(study.config)`.
    report_progress: Called with a few words and the share done.

  Returns:
    The scores of all test pictures.
  """
  config, sets = inputs.config, inputs.collection.sets
  report_progress(f'backbone {cell.settings["network"]}', 0.0)
  network, design = backbone_design(inputs, cell)
  recipe = TrainConfig(num_epochs=config.detector_epochs)
  names = tuple(sets)
  trained = (*names[1:], 'shuffled')
  sides = split(config, sets)
  shuffled = shuffled_labels(
    [s.source for s in sets.values()], [config.seed, 2, cell.settings['seed']]
  )
  key = stream(config.seed, f'detectors {cell.name}')
  made_from = {
    'design': design,
    'recipe': recipe,
    'backbone': network.fingerprint,
    # In the order in which detectors and scores are kept.
    'trained': trained,
    'tested': names,
    'pictures': {name: fingerprint(s.images) for name, s in sets.items()},
    'rows': [fingerprint(side) for side in sides],
    'feature_dtype': config.feature_dtype,
    'key': key,
    'shuffled': [SHUFFLED_WITH, fingerprint(shuffled)],
  }

  def make(folder: Path, work: Path) -> None:
    report_progress(f'detectors {cell.name}', 0.0)
    pool = pool_features(inputs, design, network)
    partners = [
      names.index(SHUFFLED_WITH if name == 'shuffled' else name)
      for name in trained
    ]
    attacked = np.stack(
      [
        shuffled.ravel()
        if name == 'shuffled'
        else np.repeat(np.arange(len(names)) == partner, config.num_pictures)
        for name, partner in zip(trained, partners, strict=True)
      ]
    )
    train_rows, valid_rows = (
      np.stack([np.concatenate([side[0], side[i]]) for i in partners])
      for side in sides[:2]
    )
    keys = jax.random.split(key, len(trained))
    together = pool.whole is not None
    groups = [slice(None)] if together else [[e] for e in range(len(trained))]

    def fit(number: int, group: Any) -> FitResult:
      """Trains detectors of a group on what they need of the pool."""
      train, valid = train_rows[group], valid_rows[group]
      data, labels = pool.whole, attacked[group]
      if data is None:
        rows = np.unique([*train[0], *valid[0]])
        data, labels = pool.take(rows), labels[:, rows]
        train, valid = (
          np.searchsorted(rows, train),
          np.searchsorted(rows, valid),
        )
      fitted = detectors.fit_detectors(
        keys[np.arange(len(trained))[group]],
        design,
        network.classifier,
        data,
        labels,
        train,
        valid,
        recipe,
        mesh=mesh.all_devices(),
        checkpoint_dir=work if together else work / trained[number],
        data_identity=made_from,
        progress=lambda done, total, _: report_progress(
          f'detectors {cell.name}', (number + done / total) / len(groups)
        ),
      )
      # Two thirds of what a state takes; scoring does not ask for it.
      return fitted._replace(state=fitted.state._replace(opt_state=None))

    fits = [fit(number, group) for number, group in enumerate(groups)]
    state = jax.tree.map(
      lambda *e: jnp.concatenate(e), *(f.state for f in fits)
    )
    history = {
      name: np.concatenate([f.history[name] for f in fits], axis=-1)
      for name in fits[0].history
    }
    scores = score_rows(
      config,
      pool,
      sides[2],
      functools.partial(
        detectors.score_detectors,
        design,
        state,
        batch_size=config.batch_size,
      ),
    )
    storage.write_npz(folder / 'scores.npz', scores=scores)
    native.write_variables(folder / 'detectors.npz', state.variables)
    storage.write_npz(folder / 'history.npz', **history)

  version = storage.code_version(__name__)
  folder = inputs.cache.get_or_make('detectors', version, made_from, make)
  test_rows = sides[2]
  sources = np.concatenate([s.source for s in sets.values()])
  scores = CellScores(
    trained=trained,
    tested=names,
    scores=storage.read_npz(folder / 'scores.npz')['scores'],
    sources=sources[test_rows],
    shuffled=shuffled.reshape(-1)[test_rows],
    accuracy=np.nan if network.accuracy is None else network.accuracy,
  )
  if config.save_detectors and cell.settings['seed'] == 0:
    save_cell(inputs, cell, design, network.classifier, scores, folder)
  return scores


def score_rows(
  config: Config,
  pool: features.Features,
  rows: np.ndarray,
  score: Callable[[jax.Array], np.ndarray],
) -> np.ndarray:
  """Scores rows of the pool, as many at a time as --batch_size says.

  Args:
    config: The config of the run.
    pool: The features.
    rows: int32[S, m].
    score: From features of B pictures to float32[E, B, ...].

  Returns:
    float32[E, S, m, ...].
  """
  size = min(config.batch_size, rows.size)
  # Repeats rows from the start, so that all steps are of one shape.
  steps = np.resize(rows, (-(-rows.size // size), size))
  scores = np.concatenate([score(pool.take(step)) for step in steps], axis=1)
  shape = (len(scores), *rows.shape, *scores.shape[2:])
  return scores[:, : rows.size].reshape(shape)


def save_cell(
  inputs: RunInputs,
  cell: Cell,
  design: detectors.Design,
  classifier: Classifier,
  scores: CellScores,
  folder: Path,
) -> None:
  """Leaves the detectors of a cell in the workdir, for `--exp=detect`.

  Args:
    inputs: The inputs of the run.
    cell: The cell.
    design: The design of its detectors.
    classifier: Their backbone.
    scores: Their scores.
    folder: Where the cache keeps their variables.
  """
  config, name = inputs.config, parse_network(cell.settings['network'])
  stacked = native.read_variables(folder / 'detectors.npz')
  for kind in config.attacks:
    member = scores.trained.index(kind)
    about = saved.About(
      backbone=name.name,
      width=name.width,
      image_size=config.image_size,
      kind=kind,
      data=Path(config.dataset).name,
      num_classes=len(inputs.heldout.class_names),
      auc=auc_estimate(*scores.positives(kind, kind)).value / 100,
    )
    saved.save(
      inputs.workdir / 'detectors' / cell.name / kind,
      design,
      classifier,
      jax.tree.map(lambda leaf, member=member: leaf[member], stacked),
      about,
    )


def split(config: Config, sets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Splits the pool into rows to train, validate and test on.

  Args:
    config: The config of the run.
    sets: The sets of the run, each of `num_pictures` pictures.

  Returns:
    int32[S, n] each, rows of the pool of all sets one after the other.
  """
  n = config.num_pictures
  if config.split_by == 'per_class':
    masks = pipeline.split_per_class(
      config.seed, np.repeat(np.arange(len(sets)), n), SHARES
    )
  else:
    # Sets with one and the same source pictures list them in one order, so
    # the same seed puts all versions of a picture on the same side.
    parts = [
      pipeline.split_by_source(config.seed, s.source, SHARES)
      for s in sets.values()
    ]
    masks = tuple(np.concatenate(side) for side in zip(*parts, strict=True))
  train, valid, test = (
    np.flatnonzero(mask).reshape(len(sets), -1).astype(np.int32)
    for mask in masks
  )
  return train, valid, test


def pool_features(
  inputs: RunInputs, design: detectors.Design, network: Network
) -> features.Features:
  """Gives the features of all pictures; those of the last backbone are kept.

  Args:
    inputs: The inputs of the run.
    design: The design of the detectors.
    network: Their backbone.

  Returns:
    The features; see `features.pool`.
  """
  config, place = inputs.config, (design, network.fingerprint)
  if place not in inputs.kept:
    inputs.kept.clear()  # First, as there may be no room for both.
    inputs.kept[place] = features.pool(
      design,
      network.classifier,
      [s.images for s in inputs.collection.sets.values()],
      dtype=config.feature_dtype,
      limit=config.feature_memory * 2**30,
      batch_size=config.batch_size,
    )
  return inputs.kept[place]


def pack_scores(scores: CellScores) -> dict[str, np.ndarray]:
  """Gives scores as a cell's file holds them."""
  return {name: np.asarray(value) for name, value in scores._asdict().items()}


def unpack_scores(arrays: dict[str, np.ndarray]) -> CellScores:
  """Gives scores back from a cell's file, which may hold more."""
  return CellScores(
    trained=tuple(map(str, arrays['trained'])),
    tested=tuple(map(str, arrays['tested'])),
    scores=arrays['scores'],
    sources=arrays['sources'],
    shuffled=arrays['shuffled'],
    accuracy=float(arrays['accuracy']),
  )


DETECTORS = CellCode(run_cell, pack_scores, unpack_scores)
