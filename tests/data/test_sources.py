import io
import os
import pickle
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jaxadv import units
from jaxadv.data import fake, images, sources
from jaxadv.data.known import may_mirror
from jaxadv.errors import DataError, UserError
from jaxadv.sets import io as sets_io
from jaxadv.sets.types import AdversarialSet

load = sources.load


@pytest.fixture(scope='module')
def digits_cache(tmp_path_factory):
  cache = tmp_path_factory.mktemp('cache')
  load('digits', cache_dir=cache)
  return cache


@pytest.fixture(autouse=True)
def no_data_dir(request, monkeypatch):
  if 'data' not in request.keywords:
    monkeypatch.delenv('JAXADV_DATA_DIR', raising=False)


@pytest.fixture
def data_dir(tmp_path):
  """A TFDS set of ours in the layout of a data_dir."""
  pictures = fake.generated_pictures(40, 8, num_classes=4)
  flags = np.ones(40, bool)
  prepared = AdversarialSet(
    pictures.images,
    pictures.labels,
    pictures.source,
    flags,
    flags,
    'fgsm',
    ('ant', 'bee', 'cat', 'dog'),
    {},
  )
  (tmp_path / 'pets').mkdir()
  sets_io.write(prepared, tmp_path / 'pets' / '1.0.0')
  return tmp_path


def test_digits_are_those_of_scikit_learn(digits_cache):
  pictures = load('digits', 'all', cache_dir=digits_cache)
  digits = load_digits()
  assert pictures.images.shape == (1797, 32, 32, 3)
  assert pictures.images.dtype == np.uint8 and pictures.labels.dtype == np.int32
  np.testing.assert_array_equal(pictures.labels, digits.target)
  np.testing.assert_array_equal(pictures.source, np.arange(1797))
  # Bicubic enlargement by four overshoots, yet keeps the picture.
  small = images.resize(pictures.images, 8)[..., 0]
  assert np.corrcoef(small.ravel(), digits.images.ravel())[0, 1] > 0.98


def test_digits_need_no_tensorflow(digits_cache):
  code = (
    'import sys; from jaxadv.data import sources;'
    f'sources.load("digits", cache_dir={str(digits_cache)!r});'
    'sys.exit("tensorflow" in sys.modules)'
  )
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_two_processes_and_a_kill_do_digits_no_harm(tmp_path, digits_cache):
  code = (
    'from jaxadv.data import sources;'
    f'p = sources.load("digits", cache_dir={str(tmp_path)!r});'
    'print(p.fingerprint)'
  )
  start = lambda: subprocess.Popen(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True
  )
  killed = start()
  deadline = time.monotonic() + 60
  while not list(tmp_path.glob('data/*.partial')):
    assert time.monotonic() < deadline and killed.poll() is None
    time.sleep(0.002)
  killed.kill()
  killed.communicate()
  both = [start(), start()]
  expected = load('digits', cache_dir=digits_cache).fingerprint
  for process in both:
    assert process.communicate()[0].strip() == expected
  assert len(list(tmp_path.glob('data/*'))) == 1


def test_splits_limits_sizes_and_channels(digits_cache):
  read = lambda *args, **kwargs: load(
    'digits', *args, cache_dir=digits_cache, **kwargs
  )
  whole = read()
  part = read('all[100:300]', limit=50, image_size=16, channels=1)
  assert part.images.shape == (50, 16, 16, 1)
  np.testing.assert_array_equal(part.labels, whole.labels[100:150])
  np.testing.assert_array_equal(part.source, np.arange(50))
  np.testing.assert_array_equal(
    part.images,
    images.resize(images.with_channels(whole.images[100:150], 1), 16),
  )
  fingerprints = {read(f'all[:{n}]').fingerprint for n in (5, 6, 6)}
  assert len(fingerprints) == 2


@pytest.mark.parametrize(
  'first, second, count',
  [
    ('train[:100]', 'train[100:]', 0),
    ('train[:100]', 'train[90:200]', 10),
    ('train', 'train[1700:]', 97),
    ('all', 'train[:5]', 5),
  ],
)
def test_pictures_in_two_splits(digits_cache, first, second, count):
  found = sources.overlap('digits', first, second, cache_dir=digits_cache)
  assert found == count


def test_prepared_sets_by_name_version_and_path(data_dir, monkeypatch):
  expected = fake.generated_pictures(40, 8, num_classes=4)
  for name in ('pets', 'pets:1.0.0', str(data_dir / 'pets' / '1.0.0')):
    pictures = load(name, 'train', data_dir=data_dir)
    np.testing.assert_array_equal(pictures.images, expected.images)
    np.testing.assert_array_equal(pictures.labels, expected.labels)
    assert pictures.class_names == ('ant', 'bee', 'cat', 'dog')
  monkeypatch.setenv('JAXADV_DATA_DIR', str(data_dir))
  assert load('pets').fingerprint == pictures.fingerprint
  assert sources.available() == {
    'digits': {'train': 1797},
    'pets': {'train': 40},
  }
  assert sources.splits('pets') == {'train': 40}
  # The newest version is the one that counts, by number and not by letter.
  for version in ('1.9.0', '1.10.0'):
    shutil.copytree(data_dir / 'pets/1.0.0', data_dir / 'pets' / version)
  (data_dir / 'pets/1.9.0/dataset_info.json').write_text('broken')
  assert load('pets').fingerprint == pictures.fingerprint


@pytest.mark.parametrize(
  'name, split, said',
  [
    ('pets', 'test', 'splits are train (40)'),
    ('pets', 'train[:4x]', 'splits are train (40)'),
    ('pets', 'train[:41]', 'splits are train (40)'),
    ('pets', 'train[:0]', 'is empty'),
    ('pests', 'train', 'did you mean pets? There is: digits, pets'),
    ('Pets', 'train', 'did you mean pets?'),
    ('pets:2.0.0', 'train', 'there is no version 2.0.0 of pets'),
    ('cifra10', 'train', 'did you mean cifar10'),
    ('plants', 'train', "tfds.builder('plants'"),
    ('plants', 'train', 'there is: digits, pets'),
    ('mnist', 'train', "tfds.builder('mnist'"),
    ('no_pictures', 'train', 'holds neither a prepared set nor pictures'),
    (__file__, 'train', 'is neither a folder nor an .npz file'),
    ('no/such/folder/', 'train', 'there is no folder'),
    ('none.npz', 'train', 'there is no file none.npz'),
  ],
)
def test_what_is_not_there_is_explained(data_dir, name, split, said):
  (data_dir / 'no_pictures').mkdir()
  with pytest.raises(UserError) as error:
    load(name, split, data_dir=data_dir)
  assert said in str(error.value)


def test_a_set_without_data_dir_says_how_to_prepare_it(monkeypatch):
  monkeypatch.delenv('JAXADV_DATA_DIR', raising=False)
  with pytest.raises(UserError, match=r'jaxadv\[prepare\].*array_record'):
    load('mnist', 'test')


@pytest.mark.parametrize(
  'wrong',
  [
    {'channels': 2},
    {'image_size': 0},
    {'image_size': (16, 16)},
    {'image_size': 16.5},
    {'limit': 0},
    {'limit': 0.5},
    {'classes': ['3']},
    {'classes': '3'},
    {'classes': 3},
    {'classes': [3.5]},
    {'classes': [True, False]},
    {'rows': [1.5]},
    {'rows': np.arange(1797) < 5},
  ],
)
def test_wrong_arguments(digits_cache, wrong):
  with pytest.raises(UserError, match=f'{next(iter(wrong))} is'):
    load('digits', cache_dir=digits_cache, **wrong)


def test_classes_come_as_any_whole_numbers(digits_cache):
  run = lambda classes: load(
    'digits', cache_dir=digits_cache, classes=classes, limit=5
  ).labels.tolist()
  assert run({3}) == run(np.array([3], np.uint8)) == run(range(3, 4)) == [3] * 5


def test_sets_in_another_format_or_without_labels(data_dir):
  folder = data_dir / 'pets' / '1.0.0'
  info, features = folder / 'dataset_info.json', folder / 'features.json'
  whole = info.read_text()
  info.write_text(whole.replace('"array_record"', '"tfrecord"'))
  assert 'pets' not in sources.available(data_dir)
  with pytest.raises(UserError, match='needs TensorFlow'):
    load('pets', 'train', data_dir=data_dir)
  info.write_text(whole)
  kept = features.read_text()
  features.write_text(
    kept.replace('"label"', '"image2"')
    .replace('class_label_feature.ClassLabel', 'text_feature.Text')
    .replace(
      '"classLabel": {\n                    "numClasses": "4"\n', '"text": {\n'
    )
  )
  with pytest.raises(UserError, match='needs an image and a class label'):
    load('pets', 'train', data_dir=data_dir)
  features.write_text(kept)
  info.write_text(whole.replace('{DATASET}', '{DATA}'))
  with pytest.raises(DataError, match='cannot tell the files'):
    load('pets', 'train', data_dir=data_dir)
  info.write_text(whole)
  (folder / 'label.labels.txt').write_text('ant\nbee\n')
  with pytest.raises(DataError, match='names 2 classes of 4: label.labels.txt'):
    load('pets', 'train', data_dir=data_dir)
  info.write_text('broken')
  with pytest.raises(DataError, match='cannot read the description'):
    load('pets', 'train', data_dir=data_dir)
  assert list(sources.available(data_dir)) == ['digits']


def test_broken_records_are_named(data_dir):
  folder = data_dir / 'pets' / '1.0.0'
  (file,) = folder.glob('*array_record*')
  whole = file.read_bytes()
  # The picture of record 3: its bytes no longer match the chunk's hash.
  records = [p for p in range(len(whole)) if whole.startswith(b'\x89PNG', p)]
  spot = records[3] + 20
  file.write_bytes(whole[:spot] + b'????' + whole[spot + 4 :])
  with pytest.raises(DataError, match=rf'record 3 of .*{file.name} is broken'):
    load('pets', 'train', data_dir=data_dir)
  assert len(load('pets', 'train[:3]', data_dir=data_dir).labels) == 3
  file.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(DataError, match=file.name):
    load('pets', 'train', data_dir=data_dir)
  file.unlink()
  with pytest.raises(DataError, match=f'{file.name} is missing'):
    load('pets', 'train', data_dir=data_dir)


def _write_folder(root, n=3):
  pictures = np.random.default_rng(0).integers(
    0, 256, (2, n, 6, 9, 3), np.uint8
  )
  for name, group in zip(('bee', 'ant'), pictures, strict=True):
    (root / name).mkdir(parents=True)
    for index, pixels in enumerate(group):
      (root / name / f'{index}.PNG').write_bytes(images.encode(pixels))
    (root / name / 'notes.txt').write_text('not a picture')
  return pictures


def test_a_folder_of_class_folders(tmp_path):
  bees, ants = _write_folder(tmp_path)
  pictures = load(str(tmp_path))
  assert pictures.class_names == ('ant', 'bee')
  np.testing.assert_array_equal(pictures.labels, [0, 0, 0, 1, 1, 1])
  np.testing.assert_array_equal(pictures.images, np.concatenate([ants, bees]))
  some = load(str(tmp_path), 'train[50%:]', image_size=6)
  np.testing.assert_array_equal(some.images, bees[:, :, 1:7])


def test_folders_of_splits_share_their_classes(tmp_path):
  _write_folder(tmp_path / 'train')
  (tmp_path / 'val').mkdir()
  shutil.copytree(tmp_path / 'train' / 'bee', tmp_path / 'val' / 'bee')
  assert sources.splits(str(tmp_path)) == {'train': 6, 'val': 3}
  np.testing.assert_array_equal(load(str(tmp_path), 'val').labels, [1, 1, 1])
  assert len(load(str(tmp_path), 'all').labels) == 9


def test_folders_that_cannot_be_read(tmp_path):
  with pytest.raises(UserError, match='holds no pictures'):
    load(str(tmp_path))
  _write_folder(tmp_path)
  other = tmp_path / 'bee' / '9.png'
  other.write_bytes(images.encode(np.zeros((5, 5, 3), np.uint8)))
  with pytest.raises(UserError, match=r'differ in size.*9\.png'):
    load(str(tmp_path))
  assert load(str(tmp_path), image_size=4).images.shape == (7, 4, 4, 3)
  other.write_bytes(other.read_bytes()[:40])
  with pytest.raises(DataError, match=r'cannot read .*9\.png'):
    load(str(tmp_path), image_size=4)


def test_large_pictures_are_decoded_in_order(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (12, 80, 80, 3), np.uint8)
  (tmp_path / 'one').mkdir()
  for index, picture in enumerate(pixels):
    path = tmp_path / 'one' / f'{index:02}.jpg'
    Image.fromarray(picture).save(path, 'PNG')
    assert os.path.getsize(path) > 10_000
  np.testing.assert_array_equal(load(str(tmp_path)).images, pixels)


def test_paths_are_taken_as_text_is(tmp_path):
  path = tmp_path / 'own.npz'
  np.savez(path, images=np.ones((4, 4, 4), np.uint8), labels=np.arange(4))
  assert load(path).fingerprint == load(str(path)).fingerprint
  assert load(path).name == 'own.npz'
  assert sources.splits(path) == {'train': 4}
  assert sources.overlap(path, 'train[:3]', 'train[2:]') == 1
  assert sources.open_records(path).n == 4
  assert not may_mirror(path)
  for wrong in (3, None, np.ones((2, 4, 4, 3))):
    with pytest.raises(UserError, match='must be a name or a path'):
      load(wrong)


@pytest.mark.parametrize(
  'names, said',
  [
    (['x', 'y'], r"images=f\['x'\], labels=f\['y'\]"),
    (
      ['x_test', 'x_train', 'y_train', 'y_test'],
      r"images=f\['x_train'\], labels=f\['y_train'\]",
    ),
    (['arr_0'], r"images=f\['arr_0'\], labels=LABELS"),
    (['images', 'Y'], r"images=f\['images'\], labels=f\['Y'\]"),
    (['a', 'b'], 'holds a, b but must hold images and labels$'),
  ],
)
def test_npz_with_other_names_says_how_to_rename(tmp_path, names, said):
  path = tmp_path / 'own.npz'
  np.savez(path, **{name: np.zeros(2) for name in names})
  with pytest.raises(UserError, match=said):
    load(path)


def test_npz(tmp_path):
  path = tmp_path / 'own.npz'
  pictures = fake.generated_pictures(6, 8, num_classes=3, channels=1)
  floats = units.to_float(pictures.images)
  for stored in (pictures.images, floats, floats[..., 0].astype(np.float64)):
    np.savez(path, images=stored, labels=pictures.labels)
    read = load(str(path), 'train[:4]', channels=1)
    np.testing.assert_array_equal(read.images, pictures.images[:4])
    np.testing.assert_array_equal(read.labels, pictures.labels[:4])
    assert read.class_names == ('0', '1', '2')
  np.savez(path, images=stored, labels=pictures.labels, class_names=list('xyz'))
  assert load(str(path), image_size=5).images.shape == (6, 5, 5, 3)
  assert load(str(path)).class_names == ('x', 'y', 'z')


@pytest.mark.parametrize(
  'change, error, said',
  [
    (
      lambda a: a['images'].__setitem__((2, 0, 0, 0), np.nan),
      DataError,
      'row 2',
    ),
    (lambda a: a['images'].__setitem__((3, 0, 0, 0), 1.5), UserError, 'row 3'),
    (lambda a: a['images'].__setitem__((1, 0, 1, 2), -1), UserError, 'row 1'),
    (lambda a: a['labels'].__setitem__(1, -1), UserError, 'hold -1 in row 1'),
    (lambda a: a.pop('labels'), UserError, 'must hold images and labels'),
    (lambda a: a.update(labels=a['labels'][:2]), UserError, 'the 4 pictures'),
    (lambda a: a.update(images=a['labels']), UserError, 'must be \\[N'),
    (
      lambda a: a.update(images=200 * a['images']),
      UserError,
      'row 0 .* divide by 255',
    ),
    (
      lambda a: a.update(images=a['images'].transpose(0, 3, 1, 2)),
      UserError,
      r'\[N, C, H, W\]',
    ),
    (
      lambda a: a.update(labels=np.eye(4, dtype=int)),
      UserError,
      r'one-hot rows become labels by argmax',
    ),
    (
      lambda a: a.update(labels=a['labels'][:, None]),
      UserError,
      r'give labels\[:, 0\]',
    ),
    (
      lambda a: a.update(labels=a['labels'] + 1),
      UserError,
      'from 1 to 4 .* subtract 1',
    ),
    (
      lambda a: a.update(labels=2 * a['labels']),
      UserError,
      'from 0 to 6 .* without gaps, or give class_names',
    ),
    (
      lambda a: a.update(labels=a['labels'] + 2**33),
      UserError,
      'hold 8589934592 in row 0',
    ),
    (lambda a: a.update(class_names=['x']), UserError, 'the classes 0 to 0'),
    (lambda a: a.update(class_names='abcd'), UserError, 'a list of names'),
    (lambda a: a.update(class_names=list('aabb')), UserError, 'a name twice'),
  ],
)
def test_npz_that_is_wrong(tmp_path, change, error, said):
  path = tmp_path / 'own.npz'
  arrays = {
    'images': np.full((4, 6, 6, 3), 0.5, np.float32),
    'labels': np.arange(4),
  }
  change(arrays)
  np.savez(path, **arrays)
  with pytest.raises(error, match=said):
    load(str(path))


def test_class_names_allow_for_absent_classes(tmp_path):
  path = tmp_path / 'own.npz'
  arrays = {'images': np.ones((2, 4, 4, 3)), 'labels': np.array([3, 1])}
  np.savez(path, **arrays, class_names=np.array(list('abcd'), 'S'))
  pictures = load(str(path))
  assert pictures.class_names == ('a', 'b', 'c', 'd')
  np.testing.assert_array_equal(pictures.labels, [3, 1])


def _compressed_and_damaged():
  file = io.BytesIO()
  noise = np.random.default_rng(0).random((4, 9, 9, 3), np.float32)
  np.savez_compressed(file, images=noise, labels=np.arange(4))
  written = bytearray(file.getvalue())
  written[60:600] = bytes(540)
  return bytes(written)


def _single_array():
  file = io.BytesIO()
  np.save(file, np.ones((2, 4, 4, 3), np.uint8))
  return file.getvalue()


@pytest.mark.parametrize(
  'contents',
  [
    b'PK nothing',
    b'',
    b'text',
    pickle.dumps({'images': 1}),
    _single_array(),
    _compressed_and_damaged(),
    _compressed_and_damaged()[:-30],
  ],
)
def test_files_that_are_no_whole_npz_are_named(tmp_path, contents):
  path = tmp_path / 'own.npz'
  path.write_bytes(contents)
  with pytest.raises(DataError, match=f'cannot read {path}: .'):
    load(str(path))


def test_npz_of_another_type(tmp_path):
  path = tmp_path / 'own.npz'
  np.savez(path, images=np.ones((2, 4, 4, 3), np.int32), labels=np.arange(2))
  with pytest.raises(UserError, match='must be uint8'):
    load(str(path))


@pytest.mark.data
@pytest.mark.parametrize(
  'name, split, n, shape, first',
  [
    ('mnist', 'test', 10_000, (28, 28, 3), [2, 0, 4, 8, 7, 6, 0, 6, 3, 1]),
    ('cifar10', 'train', 50_000, (32, 32, 3), None),
    ('imagenet_sample', 'validation', 1000, (224, 224, 3), None),
    ('imagenette160', 'train', 500, (160, 160, 3), None),
  ],
)
def test_real_sets(name, split, n, shape, first):
  pictures = load(name, split)
  assert pictures.images.shape == (n, *shape)
  if first:
    assert list(pictures.labels[: len(first)]) == first
  else:
    assert len(set(np.bincount(pictures.labels))) == 1  # Balanced classes.


@pytest.mark.data
def test_cifar10_has_the_published_mean():
  pictures = load('cifar10', 'train')
  means = pictures.images.reshape(-1, 3).mean(axis=0) / 255
  np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-4)


@pytest.mark.data
def test_real_pictures_are_resized():
  pictures = load('imagenette160', 'validation[:20]', image_size=64)
  whole = load('imagenette160', 'validation[:20]')
  np.testing.assert_array_equal(
    pictures.images, images.resize(whole.images, 64)
  )


def test_padding_puts_pictures_amid_zeros():
  pixels = np.arange(1, 2 * 9 + 1, dtype=np.uint8).reshape(2, 3, 3, 1)
  pictures = sources.pictures_from_arrays(
    pixels, [0, 1], class_names=('a', 'b'), name='set'
  )
  found = sources.padded(pictures, 6).images
  assert found.shape == (2, 6, 6, 1)
  np.testing.assert_array_equal(found[:, 1:4, 1:4], pixels)
  assert found.sum() == pixels.sum()
  assert sources.padded(pictures, 3) is pictures
  with pytest.raises(UserError, match='larger than 2x2'):
    sources.padded(pictures, 2)
