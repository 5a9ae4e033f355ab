"""Figures 5 and 6: one network that names the kinds of a category.

An identifier learns the clean pictures and every kind of a category as
classes; detectors of single kinds are those of the other experiments. All are
judged on the same test pictures, clean and attacked ones counting the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.common.runner import CellCode, ReportParts, ReportProgress
from experiments.connection import claims, detectors, report
from experiments.connection import config as config_module
from experiments.connection import plan as matrix_plan
from experiments.connection import supervision_report as shown
from experiments.connection.config import Config
from experiments.connection.detectors import RunInputs
from experiments.connection.matrix import Matrix
from experiments.connection.supervision_report import Supervised, categories
from experiments.connection.unseen_transfer import run_matrix
from jaxadv import reports, storage
from jaxadv.identifiers import backbone as identifiers
from jaxadv.models.weights import native
from jaxadv.runs import Cell, stream
from jaxadv.storage import fingerprint
from jaxadv.training import TrainConfig, mesh

__all__ = ['cells', 'get_config', 'plan', 'run']

QUESTION = (
  'Does a network that learns all kinds of a category as classes of their own '
  'detect them better than one that learns a single kind?'
)


def get_config(variant: str = 'quick', dataset: str = '') -> Config:
  """Gives the config of a variant, with its first backbone alone.

  The paper does not say whose accuracy its Figure 6 shows.

  Raises:
    UserError: If there is no such variant.
  """
  config = config_module.get_config(variant, dataset)
  return dataclasses.replace(config, backbones=config.backbones[:1])


def cells(config: Config) -> list[Cell]:
  """Lists the cells of a run: every backbone with every seed.

  Raises:
    UserError: If no category has several kinds.
  """
  categories(config.attacks)
  return detectors.cells(config)


def plan(config: Config, workdir: str) -> str:
  """Describes a run; see `connection.plan`."""
  names = categories(config.attacks)
  classes = sum(1 + len(kinds) for kinds in names.values())
  # Each detector learns two classes; as many detectors as `detectors` trains.
  share = classes / (2 * matrix_plan.num_members(config))
  return (
    matrix_plan.plan(config, workdir)
    + f'\nidentifiers: one each of {", ".join(names)} kinds in every cell, not '
    f"in this time; about {share:.0%} of what the cell's detectors take"
  )


def run_cell(
  inputs: RunInputs, cell: Cell, report_progress: ReportProgress
) -> Supervised:
  """Trains and scores detectors and identifiers, or finds them in the cache.

  Args:
    inputs: The inputs of the run.
    cell: One of `cells(inputs.config)`.
    report_progress: Called with a few words and the share done.

  Returns:
    Scores and logits of all test pictures.
  """
  single = detectors.run_cell(inputs, cell, report_progress)
  return Supervised(
    single,
    {
      category: _identify(inputs, cell, category, kinds, report_progress)
      for category, kinds in categories(inputs.config.attacks).items()
    },
  )


def _identify(
  inputs: RunInputs,
  cell: Cell,
  category: str,
  kinds: Sequence[str],
  report_progress: ReportProgress,
) -> np.ndarray:
  """Gives the logits of a category's identifier, float32[S, M, 1 + N]."""
  config, sets = inputs.config, inputs.collection.sets
  network, design = detectors.backbone_design(inputs, cell)
  recipe = TrainConfig(num_epochs=config.detector_epochs)
  sides = detectors.split(config, sets)
  name = f'identifier {category} {cell.name}'
  key = stream(config.seed, name)
  made_from = {
    'design': design,
    'recipe': recipe,
    'backbone': network.fingerprint,
    'classes': ('clean', *kinds),
    # In the order in which logits are kept.
    'tested': tuple(sets),
    'pictures': {name: fingerprint(s.images) for name, s in sets.items()},
    'rows': [fingerprint(side) for side in sides],
    'feature_dtype': config.feature_dtype,
    'key': key,
  }

  def make(folder: Path, work: Path) -> None:
    report_progress(name, 0.0)
    pool = detectors.pool_features(inputs, design, network)
    chosen = [list(sets).index(kind) for kind in ('clean', *kinds)]
    train, valid = (side[chosen].ravel() for side in sides[:2])
    rows = np.concatenate([train, valid])
    classes = np.concatenate(
      [np.repeat(np.arange(len(chosen)), side.shape[1]) for side in sides[:2]]
    )
    fitted = identifiers.fit_identifiers(
      key[None],
      design,
      network.classifier,
      pool.take(rows),
      classes[None],
      np.arange(len(train))[None],
      np.arange(len(train), len(rows))[None],
      recipe,
      num_classes=1 + len(kinds),
      mesh=mesh.all_devices(),
      checkpoint_dir=work,
      data_identity=made_from,
      progress=lambda done, total, _: report_progress(name, done / total),
    )
    logits = detectors.score_rows(
      config,
      pool,
      sides[2],
      lambda features: identifiers.identify(
        design,
        fitted.state,
        features,
        num_classes=1 + len(kinds),
        batch_size=config.batch_size,
      ),
    )
    storage.write_npz(folder / 'logits.npz', logits=logits[0])
    native.write_variables(folder / 'identifier.npz', fitted.state.variables)
    storage.write_npz(folder / 'history.npz', **fitted.history)

  version = storage.code_version(__name__)
  folder = inputs.cache.get_or_make('identifier', version, made_from, make)
  return storage.read_npz(folder / 'logits.npz')['logits']


def pack(result: Supervised) -> dict[str, np.ndarray]:
  """Gives what a cell's file holds."""
  logits = {f'logits/{name}': found for name, found in result.logits.items()}
  return detectors.pack_scores(result.single) | logits


def unpack(arrays: dict[str, np.ndarray]) -> Supervised:
  """Gives a cell's result back from its file."""
  return Supervised(
    detectors.unpack_scores(arrays),
    {
      name.removeprefix('logits/'): found
      for name, found in arrays.items()
      if name.startswith('logits/')
    },
  )


def run(config: Config, workdir: str) -> reports.Record | None:
  """Runs the experiment and writes its report; see `run_matrix`.

  Raises:
    UserError: If what was asked for cannot be.
    DataError: If data are broken or the disk is full.
  """
  wanted = categories(config.attacks)

  def describe(inputs, found):
    results = {
      report.title(network, config.image_size): seeds
      for network, seeds in found.items()
    }
    judged = shown.judge(results, wanted)
    matrix = Matrix(
      {
        network: shown.with_identifiers(seeds)
        for network, seeds in results.items()
      },
      config.attacks,
    )
    faded = report.faded_kinds(inputs)
    lasting = [kind for kind in config.attacks if kind not in faded]
    return ReportParts(
      claims=shown.evaluate(
        judged,
        wanted,
        matrix.num_tested,
        report.untrained(inputs, matrix) + claims.weak(matrix, lasting),
      ),
      rows=shown.rows(judged, matrix, wanted)
      + report.picture_rows(inputs, matrix)
      + report.control_rows(inputs, matrix),
      answer=shown.answer(judged, wanted),
      tables=shown.tables(wanted)
      + report.tables(inputs, matrix.kinds, unseen=False)[1:],
      figures=shown.figures(matrix.backbones, wanted),
      arrays=shown.arrays(results),
    )

  return run_matrix(
    config,
    workdir,
    name='attack_supervision',
    question=QUESTION,
    code=CellCode(run_cell, pack, unpack),
    describe=describe,
  )
