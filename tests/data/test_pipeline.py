import jax
import numpy as np
import pytest

from jaxadv.data import fake, pipeline
from jaxadv.errors import UserError


@pytest.mark.parametrize('n, batch_size', [(10, 4), (8, 4), (3, 8), (1, 1)])
def test_an_epoch_meets_every_row_once(n, batch_size):
  rows, mask = pipeline.epoch_order(jax.random.key(0), n, batch_size)
  assert rows.shape == mask.shape == (-(-n // batch_size), batch_size)
  assert rows.dtype == np.int32
  np.testing.assert_array_equal(np.sort(rows[mask]), np.arange(n))
  np.testing.assert_array_equal(mask.ravel(), np.arange(mask.size) < n)


def test_epochs_are_shuffled_by_their_key():
  order = lambda seed: pipeline.epoch_order(
    None if seed is None else jax.random.key(seed), 50, 10
  )[0].ravel()
  np.testing.assert_array_equal(order(None), np.arange(50))
  np.testing.assert_array_equal(order(1), order(1))
  assert np.any(order(1) != order(2)) and np.any(order(1) != order(None))


def test_take_scales_and_keeps_what_is_known():
  pictures = fake.generated_pictures(12, 8)
  stored = pipeline.stored(pictures, kind=3)
  rows = np.array([5, 0, 11])
  batch = jax.jit(pipeline.take)(
    jax.device_put(stored), rows, np.array([True, True, False])
  )
  np.testing.assert_allclose(
    batch.images, pictures.images[rows] / np.float32(255), rtol=1e-6
  )
  assert batch.images.dtype == np.float32
  np.testing.assert_array_equal(batch.labels, pictures.labels[rows])
  np.testing.assert_array_equal(batch.source, rows)
  np.testing.assert_array_equal(batch.kind, [3, 3, 3])
  np.testing.assert_array_equal(batch.mask, [True, True, False])


def test_batches_can_be_read_twice_and_mask_their_padding():
  pictures = fake.generated_pictures(10, 8)
  batches = pipeline.batches(pictures, 4)
  assert len(batches) == 3
  for _ in range(2):
    parts = list(batches)
    assert [part.images.shape[0] for part in parts] == [4, 4, 4]
    seen = np.concatenate([part.source[part.mask] for part in parts])
    np.testing.assert_array_equal(seen, pictures.source)


def test_batches_refuse_what_they_cannot_make():
  pictures = fake.generated_pictures(4, 8)
  with pytest.raises(UserError, match='batch_size is 0'):
    pipeline.batches(pictures, 0)
  empty = pipeline.select(pipeline.stored(pictures), np.zeros(4, bool))
  with pytest.raises(UserError, match='no pictures'):
    pipeline.batches(empty, 2)


def test_joined_sets_keep_their_rows():
  pictures = fake.generated_pictures(6, 8)
  both = pipeline.concatenate(
    [pipeline.stored(pictures), pipeline.stored(pictures, kind=2)]
  )
  np.testing.assert_array_equal(both.kind, [0] * 6 + [2] * 6)
  picked = pipeline.select(both, both.kind == 2)
  np.testing.assert_array_equal(picked.source, np.arange(6))


def test_versions_of_a_picture_stay_on_one_side():
  source = np.random.default_rng(0).integers(0, 200, 1000)
  train, test = pipeline.split_by_source(0, source, (0.5, 0.5))
  assert not set(source[train]) & set(source[test])
  assert np.all(train ^ test)
  assert len(set(source[train])) == len(set(source)) // 2
  other, _ = pipeline.split_by_source(1, source, (0.5, 0.5))
  assert np.any(train != other)


def test_fractions_that_leave_rows_out():
  parts = pipeline.split_by_source(0, np.arange(100), (0.5, 0.1, 0.2))
  assert [part.sum() for part in parts] == [50, 10, 20]
  assert np.sum(parts, axis=0).max() == 1
  for wrong in ((0.6, 0.6), (-0.1, 0.5)):
    with pytest.raises(UserError, match='fractions'):
      pipeline.split_by_source(0, np.arange(100), wrong)


def test_the_split_of_the_paper_halves_every_kind_and_leaks():
  kind = np.repeat([0, 1, 2], 100)
  source = np.tile(np.arange(100), 3)
  train, test = pipeline.split_per_class(0, kind, (0.5, 0.5))
  for value in range(3):
    assert train[kind == value].sum() == test[kind == value].sum() == 50
  # Independent halves share about 50 of 100 sources, one permutation none.
  shared = set(source[train & (kind == 0)]) & set(source[test & (kind == 1)])
  assert 10 < len(shared) < 40


def test_generated_pictures_can_be_told_apart():
  pictures = fake.generated_pictures(200, 16, num_classes=4, seed=1)
  again = fake.generated_pictures(200, 16, num_classes=4, seed=1)
  assert pictures.fingerprint == again.fingerprint
  other = fake.generated_pictures(200, 16, num_classes=4, seed=2)
  assert pictures.fingerprint != other.fingerprint
  flat = pictures.images.reshape(200, -1) / 255 - 0.5
  means = np.stack(
    [flat[:100][pictures.labels[:100] == k].mean(0) for k in range(4)]
  )
  means /= np.linalg.norm(means, axis=1, keepdims=True)
  nearest = np.argmax(flat[100:] @ means.T, axis=1)
  assert np.mean(nearest == pictures.labels[100:]) > 0.9
