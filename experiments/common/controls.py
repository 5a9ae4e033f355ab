"""Negative controls: what ought to be chance, whatever was learnt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxadv.metrics.estimates import Estimate, auc_estimate
from jaxadv.reports import Table


def clean_against_clean(scores: np.ndarray, sources: np.ndarray) -> Estimate:
  """Compares every other clean picture with the rest: nothing to tell.

  Args:
    scores: float[n], of clean pictures.
    sources: int[n], their ids.

  Returns:
    The AUC in per cent.
  """
  return auc_estimate(scores[::2], scores[1::2], sources[::2], sources[1::2])


def clean_table(metric: str, row_label: str) -> Table:
  """Lays out the rows of `clean_against_clean`, of the role 'control'."""
  return Table(
    'Clean against clean: ought to be 50',
    metric,
    (row_label,),
    'pictures',
    filters={'role': 'control'},
    control=True,
  )


def shuffled_labels(
  sources: Sequence[np.ndarray], seed: Sequence[int]
) -> np.ndarray:
  """Draws one random label a source picture, of which half are True.

  All versions of a picture share their label, so a detector can only learn it
  if sources lie on both sides of a split.

  Args:
    sources: int[n] of each of S sets.
    seed: Of the draws.

  Returns:
    bool[S, n].
  """
  stacked = np.stack(sources)
  ids, place = np.unique(stacked, return_inverse=True)
  labels = np.random.default_rng(seed).permutation(np.arange(len(ids)) % 2 == 0)
  return labels[place].reshape(stacked.shape)
