"""Which pictures train and which test, and a control that sees a leak."""

import types

import numpy as np
import pytest

from experiments.common.controls import shuffled_labels
from experiments.connection import detectors
from experiments.connection.config import Config
from jaxadv.metrics.roc import auc

NUM = 200


@pytest.fixture(scope='module')
def sets():
  """Clean pictures, two attacked versions of them, and natural ones."""
  rng = np.random.default_rng(0)
  own = rng.permutation(5000)[: 2 * NUM]
  sources = [own[:NUM]] * 3 + [own[NUM:]]
  names = ('clean', 'fgsm', 'hsv', 'natural')
  return {
    name: types.SimpleNamespace(source=source.astype(np.int32))
    for name, source in zip(names, sources, strict=True)
  }


def config(split, seed=0):
  return Config(num_pictures=NUM, split_by=split, seed=seed)


def shuffled(sets, seed):
  return shuffled_labels([s.source for s in sets.values()], [0, 2, seed])


def sources_of(sets, side):
  pool = np.concatenate([s.source for s in sets.values()])
  return [set(pool[rows]) for rows in side]


@pytest.mark.parametrize('split', ['source', 'per_class'])
def test_every_kind_is_split_in_the_same_proportion(sets, split):
  sides = detectors.split(config(split), sets)
  assert [side.shape for side in sides] == [(4, 90), (4, 10), (4, 100)]
  rows = np.concatenate(sides, axis=1)
  for kind, found in enumerate(rows):
    np.testing.assert_array_equal(
      np.sort(found), np.arange(kind * NUM, (kind + 1) * NUM)
    )


def test_split_by_source_lets_no_picture_cross(sets):
  train, valid, test = (
    set.union(*sources_of(sets, side))
    for side in detectors.split(config('source'), sets)
  )
  assert not train & test
  assert not train & valid
  assert not valid & test


def test_split_per_class_leaks(sets):
  train, _, test = detectors.split(config('per_class'), sets)
  clean, fgsm, *_ = sources_of(sets, train)
  tested_clean, tested_fgsm, *_ = sources_of(sets, test)
  # By chance 45 of 100, each way.
  assert len(clean & tested_fgsm) > 25
  assert len(fgsm & tested_clean) > 25


def test_split_depends_on_the_seed(sets):
  one, again, other = (
    detectors.split(config('source', seed), sets)[0] for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(one, again)
  assert (one != other).any()


def test_shuffled_labels_are_those_of_sources(sets):
  labels = shuffled(sets, 0)
  assert labels.shape == (4, NUM)
  np.testing.assert_array_equal(labels[0], labels[1])
  np.testing.assert_array_equal(labels[0], labels[2])
  assert (labels[0] != labels[3]).any()
  assert 2 * labels[[0, 3]].sum() == labels[[0, 3]].size
  anew = shuffled(sets, 1)
  assert 0.3 < (labels == anew).mean() < 0.7


@pytest.mark.parametrize(
  'split, low, high',
  # Four standard deviations of the AUC of 100 against 100 around chance; a
  # neighbour on the other side tells the label of nearly half the pictures.
  [('source', 0.34, 0.66), ('per_class', 0.68, 0.95)],
)
def test_shuffled_control_sees_the_leak(sets, split, low, high):
  """A detector that knows pictures again: the nearest training picture."""
  rng = np.random.default_rng(1)
  looks = rng.normal(size=(5000, 20))
  pool = np.concatenate([looks[s.source] for s in sets.values()])
  pool += 0.1 * rng.normal(size=pool.shape)
  labels = shuffled(sets, 0).ravel()
  train, _, test = (
    side[:2].ravel() for side in detectors.split(config(split), sets)
  )
  distances = np.linalg.norm(pool[test][:, None] - pool[train][None], axis=-1)
  guessed = labels[train][distances.argmin(axis=1)]
  assert low < auc(guessed.astype(float), labels[test]) < high
