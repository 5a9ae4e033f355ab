import itertools

import numpy as np
import pytest

from jaxadv.data import fake, images, sources, streams
from jaxadv.errors import DataError, UserError

N = 22


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """PNG pictures of 12x9 in three class folders."""
  root = tmp_path_factory.mktemp('pictures')
  pictures = fake.generated_pictures(N, 12, num_classes=3)
  for index, label in enumerate(pictures.labels):
    (root / str(label)).mkdir(exist_ok=True)
    file = root / str(label) / f'{index:02}.png'
    file.write_bytes(images.encode(pictures.images[index, :, :9]))
  return str(root)


def _read(folder, **options):
  options = {'batch_size': 8, 'image_size': 7, **options}
  return list(streams.stream(folder, **options))


def _assert_same(some, others):
  assert len(some) == len(others) > 0
  for one, other in zip(some, others, strict=True):
    for column, expected in zip(one, other, strict=True):
      np.testing.assert_array_equal(column, expected)
      assert column.dtype == expected.dtype


def test_the_stream_gives_what_load_gives(folder):
  whole = sources.load(folder, image_size=7)
  batches = _read(folder)
  assert [batch.images.shape for batch in batches] == [(8, 7, 7, 3)] * 3
  assert batches[0].images.dtype == np.uint8
  joined = [np.concatenate(column) for column in zip(*batches, strict=True)]
  np.testing.assert_array_equal(joined[4], np.arange(24) < N)
  for column, expected in zip(joined, whole[:1], strict=False):
    np.testing.assert_array_equal(column[:N], expected)
  np.testing.assert_array_equal(joined[1][:N], whole.labels)
  np.testing.assert_array_equal(joined[3][:N], whole.source)
  assert not joined[0][N:].any() and not joined[2].any()


def test_epochs_are_shuffled_by_the_seed(folder):
  order = lambda batches: np.concatenate([b.source[b.mask] for b in batches])
  twice = _read(folder, seed=3, num_epochs=2)
  first, second = order(twice[:3]), order(twice[3:])
  for epoch in (first, second):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(N))
    assert np.any(epoch != np.arange(N))
  assert np.any(first != second)
  assert np.any(first != order(_read(folder, seed=4)))
  _assert_same(twice[:3], _read(folder, seed=3))


def test_hosts_share_a_batch_between_them(folder):
  whole = _read(folder, seed=1, num_epochs=2)
  shares = [
    _read(folder, seed=1, num_epochs=2, process_index=i, process_count=4)
    for i in range(4)
  ]
  joined = [
    type(parts[0])(*map(np.concatenate, zip(*parts, strict=True)))
    for parts in zip(*shares, strict=True)
  ]
  _assert_same(joined, whole)


def test_a_resumed_stream_goes_on_as_if_never_stopped(folder):
  options = dict(seed=2, num_epochs=3)
  whole = _read(folder, **options)
  for done in (1, 4):
    _assert_same(_read(folder, start_step=done, **options), whole[done:])
  assert not _read(folder, start_step=99, **options)
  stopped = streams.stream(folder, batch_size=8, image_size=7, **options)
  for _ in range(4):
    next(stopped)
  state = stopped.get_state()
  again = streams.stream(folder, batch_size=8, image_size=7, **options)
  again.set_state(state)
  _assert_same(list(again), whole[4:])


def test_workers_change_nothing_but_speed(folder):
  options = dict(batch_size=8, image_size=7, seed=2, num_epochs=None)
  expected = list(itertools.islice(streams.stream(folder, **options), 7))
  working = streams.stream(folder, num_workers=2, **options)
  try:
    _assert_same(list(itertools.islice(working, 4)), expected[:4])
    state = working.get_state()
    _assert_same(list(itertools.islice(working, 3)), expected[4:])
    working.set_state(state)
    _assert_same(list(itertools.islice(working, 3)), expected[4:])
  finally:
    working.close()


def test_arrays_stream_too(tmp_path):
  pictures = fake.generated_pictures(5, 8)
  file = tmp_path / 'own.npz'
  np.savez(file, images=pictures.images, labels=pictures.labels)
  (batch,) = streams.stream(str(file), batch_size=5, image_size=8)
  np.testing.assert_array_equal(batch.images, pictures.images)
  np.testing.assert_array_equal(batch.labels, pictures.labels)


@pytest.mark.parametrize('num_workers', [0, 1])
def test_a_broken_picture_is_named(tmp_path, num_workers):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / 'x.png').write_bytes(b'nothing')
  broken = streams.stream(
    str(tmp_path), batch_size=1, image_size=8, num_workers=num_workers
  )
  with pytest.raises(DataError, match=r'cannot read .*x\.png'):
    next(broken)


@pytest.mark.parametrize(
  'wrong, said',
  [
    ({'batch_size': 0}, 'batch_size is 0'),
    ({'image_size': 0}, 'image_size is 0'),
    ({'channels': 2}, 'channels is 2'),
    ({'num_epochs': 0}, 'num_epochs is 0'),
    ({'num_workers': -1}, 'num_workers is -1'),
    ({'start_step': -1}, 'start_step is -1'),
    ({'process_count': 3}, 'multiple of process_count'),
    ({'process_index': 2, 'process_count': 2}, 'must be below process_count'),
    ({'split': 'test'}, 'splits are train'),
  ],
)
def test_wrong_arguments(folder, wrong, said):
  with pytest.raises(UserError, match=said):
    _read(folder, **wrong)
