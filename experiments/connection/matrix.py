"""AUC of every detector on every kind, as estimates over trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxadv.metrics.estimates import (
  Estimate,
  auc_estimate,
  mean,
  over_trainings,
)

# The control 'shuffled' learns random labels of clean pictures and of this
# set, which shows each of them a second time: a leak has nowhere to hide.
SHUFFLED_WITH = 'reencoded'


class CellScores(NamedTuple):
  """What one cell of the run leaves: scores of test pictures.

  Attributes:
    trained: Names of the detectors, E of them: kinds, then controls.
    tested: Names of the test sets, S of them, 'clean' first.
    scores: float32[E, S, M], higher means more likely attacked.
    sources: int32[S, M], ids of the source pictures.
    shuffled: bool[S, M], the random labels of the control 'shuffled'.
    accuracy: Share of the held-out pictures that the backbone classifies
      correctly; NaN if it has other classes.
  """

  trained: tuple[str, ...]
  tested: tuple[str, ...]
  scores: np.ndarray
  sources: np.ndarray
  shuffled: np.ndarray
  accuracy: float = float('nan')

  def positives(
    self, trained: str, tested: str
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gives scores and sources of clean, then of attacked pictures."""
    scores = self.scores[self.trained.index(trained)]
    column = self.tested.index(tested)
    return scores[0], scores[column], self.sources[0], self.sources[column]

  def shuffled_positives(
    self, sets: Sequence[str]
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gives the same for the control whose labels are random."""
    rows = [self.tested.index(name) for name in sets]
    scores = self.scores[self.trained.index('shuffled')][rows]
    labels, sources = self.shuffled[rows], self.sources[rows]
    return (
      scores[~labels],
      scores[labels],
      sources[~labels],
      sources[labels],
    )


class Matrix:
  """AUC in per cent, mean over seeds, of each backbone's detectors.

  Attributes:
    backbones: Names, in the order of the run.
    kinds: Kinds that detectors were trained on.
    num_tested: Test pictures of a kind.
  """

  def __init__(
    self,
    cells: Mapping[str, Sequence[CellScores]],
    kinds: Sequence[str],
    printed: Mapping[tuple[str, str, str], float] | None = None,
  ):
    """Computes no cell before it is asked for.

    Args:
      cells: The scores of each backbone, one element a seed.
      kinds: The kinds of the run.
      printed: {(backbone, trained, tested): the paper's number}.
    """
    self.backbones = tuple(cells)
    self.kinds = tuple(kinds)
    # All sets have as many, and all cells the same ones.
    self.num_tested = next(iter(cells.values()))[0].sources.shape[1]
    self._cells = cells
    self._printed = printed or {}
    self._figures: dict[tuple[str, str, str], Estimate] = {}

  def accuracy(self, backbone: str) -> Estimate | None:
    """Gives a backbone's own accuracy in per cent, if its classes allow it."""
    trainings = [100 * float(c.accuracy) for c in self._cells[backbone]]
    if np.isnan(trainings).any():
      return None
    value = float(np.mean(trainings))
    # Of all held-out pictures: training is the chance that counts.
    return Estimate(value, np.full(1, value), tuple(trainings))

  def cell(self, backbone: str, trained: str, tested: str) -> Estimate:
    """Gives the AUC of the detector of one kind on another."""
    place = (backbone, trained, tested)
    if place not in self._figures:
      cells = self._cells[backbone]
      if trained == 'shuffled':
        groups = [c.shuffled_positives(('clean', tested)) for c in cells]
      else:
        groups = [c.positives(trained, tested) for c in cells]
      self._figures[place] = over_trainings(
        [auc_estimate(*group) for group in groups],
        paper=self._printed.get(place),
      )
    return self._figures[place]

  def unseen_mean(
    self, backbone: str, trained: Sequence[str], tested: Sequence[str]
  ) -> Estimate:
    """Averages the cells whose detector has not seen the kind."""
    return mean(
      [self.cell(backbone, a, b) for a in trained for b in tested if a != b]
    )
