import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxadv.data import imagenet, images, sources, streams
from jaxadv.data.readers import prepared
from jaxadv.errors import DataError, UserError

load = sources.load
# Labels of 40 pictures: every other one is of a class of ImageNet-A.
LABELS = np.array([6, 0, 11, 999, 988, 1, 13, 5] * 5)


def _jpeg(index, shape=(18, 24)):
  """A picture whose grey level tells its index."""
  file = io.BytesIO()
  pixels = np.full((*shape, 3), 6 * index, np.uint8)
  Image.fromarray(pixels).save(file, 'JPEG', quality=95)
  return file.getvalue()


def _write(root, name, splits):
  """Writes a set in the layout of TFDS's own ImageNet builders.

  Args:
    root: The data_dir.
    name: Name of the set.
    splits: By split, pairs of file name and label (a wnid, or -1).
  """

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('5.1.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            'image': tfds.features.Image(encoding_format='jpeg'),
            'label': tfds.features.ClassLabel(names=imagenet.wnids()),
            'file_name': tfds.features.Text(),
          }
        ),
        supervised_keys=('image', 'label'),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      return {
        split: self._generate_examples(examples)
        for split, examples in splits.items()
      }

    def _generate_examples(self, examples):
      for index, (file_name, label) in enumerate(examples):
        yield (
          index,
          {'image': _jpeg(index), 'label': label, 'file_name': file_name},
        )

  Builder.name = name
  builder = Builder(data_dir=root, file_format='array_record')
  with prepared.quiet_tfds():
    builder.download_and_prepare()


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  root = tmp_path_factory.mktemp('data')
  wnids = imagenet.wnids()
  labelled = [wnids[label] for label in LABELS]
  number = lambda kind: [f'ILSVRC2012_{kind}_{i:08}.JPEG' for i in range(40)]
  _write(
    root,
    'imagenet2012',
    {
      'test': [('t.JPEG', -1)] * 3,
      'train': list(zip(number('train'), labelled, strict=True)),
      'validation': list(zip(number('val'), labelled, strict=True)),
    },
  )
  names = [f'0.00{i:04}_digital clock _ fly_0.9{i}.jpg' for i in range(20)]
  a = [wnids[label] for label in imagenet.IMAGENET_A_CLASSES[:20]]
  _write(root, 'imagenet_a', {'test': list(zip(names, a, strict=True))})
  for index in range(4):
    folder = root / 'imagenet_o' / wnids[990 + index]
    folder.mkdir(parents=True)
    (folder / 'o.JPEG').write_bytes(_jpeg(index))
  return root


def _levels(pictures):
  """Recovers the indices that the pictures were written with."""
  return np.round(pictures.images.mean(axis=(1, 2, 3)) / 6).astype(int)


def test_sets_are_found_and_splits_without_labels_are_not(data_dir):
  assert sources.available(data_dir) == {
    'digits': {'train': 1797},
    'imagenet2012': {'train': 40, 'validation': 40},
    'imagenet_a': {'test': 20},
    'imagenet_o': {'train': 4},
  }
  whole = load('imagenet2012', data_dir=data_dir, image_size=8)
  assert len(whole.labels) == 80
  with pytest.raises(UserError, match='no split test'):
    load('imagenet2012', 'test', data_dir=data_dir)


def test_secret_labels_are_refused(data_dir, monkeypatch):
  monkeypatch.setattr(prepared, '_WITHOUT_LABELS', {})
  with pytest.raises(DataError, match='record 0 of .* has no label'):
    load('imagenet2012', 'test', data_dir=data_dir, image_size=8)


def test_a_random_subset_is_read_without_the_rest(data_dir, monkeypatch):
  read = dict(data_dir=data_dir, image_size=8)
  decoded = []
  plain = images.decode

  def counted(encoded, *args):
    decoded.append(encoded)
    return plain(encoded, *args)

  monkeypatch.setattr(images, 'decode', counted)
  drawn = load('imagenet2012', 'validation', limit=10, seed=1, **read)
  assert len(decoded) == len(set(drawn.source)) == 10
  np.testing.assert_array_equal(_levels(drawn), drawn.source)
  np.testing.assert_array_equal(drawn.labels, LABELS[drawn.source])
  assert drawn.file_names == tuple(
    f'ILSVRC2012_val_{row:08}.JPEG' for row in drawn.source
  )
  again = load('imagenet2012', 'validation', limit=10, seed=1, **read)
  assert again.fingerprint == drawn.fingerprint
  other = load('imagenet2012', 'validation', limit=10, seed=2, **read)
  assert set(other.source) != set(drawn.source)
  assert np.any(np.sort(drawn.source) != drawn.source)
  rows = load('imagenet2012', 'validation[10:]', rows=[29, 0, 3], **read)
  np.testing.assert_array_equal(_levels(rows), [39, 10, 13])
  np.testing.assert_array_equal(rows.source, [29, 0, 3])


def test_only_the_classes_of_imagenet_a(data_dir):
  read = dict(data_dir=data_dir, image_size=8)
  classes = imagenet.IMAGENET_A_CLASSES
  some = load('imagenet2012', 'train', seed=0, limit=7, classes=classes, **read)
  assert len(some.labels) == 7 and set(some.labels) <= set(classes)
  np.testing.assert_array_equal(_levels(some), some.source)
  every = load('imagenet2012', 'train', classes=classes, **read)
  np.testing.assert_array_equal(every.source, np.arange(0, 40, 2))
  whole = load('imagenet2012', 'train', **read)
  filtered = sources.subset(whole, np.isin(whole.labels, list(classes)))
  assert filtered.fingerprint == every.fingerprint
  assert filtered.file_names == every.file_names
  np.testing.assert_array_equal(filtered.source, every.source)


@pytest.mark.parametrize(
  'wrong, said',
  [
    ({'rows': [40]}, 'rows holds 40'),
    ({'rows': [-1]}, 'rows holds -1'),
    ({'rows': []}, 'no picture'),
    ({'rows': [1], 'seed': 0}, 'give one of them'),
    ({'classes': [7]}, 'no picture of train'),
  ],
)
def test_subsets_that_cannot_be_had(data_dir, wrong, said):
  with pytest.raises(UserError, match=said):
    load('imagenet2012', 'train', data_dir=data_dir, image_size=8, **wrong)


def test_the_200_classes():
  classes = imagenet.IMAGENET_A_CLASSES
  assert len(set(classes)) == 200 and list(classes) == sorted(classes)
  assert 0 <= classes[0] and classes[-1] < 1000
  wnids = imagenet.wnids()
  assert len(set(wnids)) == 1000
  # Stingray, goldfinch, hamburger and acorn.
  for wnid in ('n01498041', 'n01531178', 'n07697313', 'n12267677'):
    assert wnids.index(wnid) in classes
  assert wnids.index('n01440764') not in classes  # Tench.


def test_class_folders_get_the_labels_of_imagenet(data_dir, tmp_path):
  folders = load('imagenet_o', data_dir=data_dir, image_size=8)
  np.testing.assert_array_equal(folders.labels, [0, 1, 2, 3])
  full = imagenet.relabel(folders)
  np.testing.assert_array_equal(full.labels, [990, 991, 992, 993])
  assert full.class_names == imagenet.wnids()
  assert imagenet.relabel(full) is full
  (tmp_path / 'clock').mkdir()
  (tmp_path / 'clock' / '1.jpg').write_bytes(_jpeg(0))
  with pytest.raises(UserError, match='class clock'):
    imagenet.relabel(load(str(tmp_path), image_size=8))


def _write_crops(root, names):
  for index, name in enumerate(names):
    folder = root / 'n01498041'
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(_jpeg(index, (9, 9)))
  return load(str(root), image_size=8)


def test_crops_have_the_source_of_their_picture(data_dir, tmp_path):
  whole = load('imagenet_a', data_dir=data_dir, image_size=8)
  whole = sources.disjoint(load('imagenet_o', data_dir=data_dir), whole)[1]
  np.testing.assert_array_equal(whole.source, np.arange(4, 24))
  stem = lambda i: f'0.00{i:04}_digital clock _ fly_0.9{i}'
  # Sorted by name, as folders are read. The name of picture 1 begins that of
  # picture 10 but for the number.
  names = [f'{stem(3)}.png.jpg', f'{stem(3)}_crop.jpg', f'{stem(10)}.jpg']
  crops = imagenet.join_sources(_write_crops(tmp_path, sorted(names)), whole)
  assert crops.file_names == tuple(sorted(names))
  np.testing.assert_array_equal(crops.source, [7, 7, 14])
  with pytest.raises(UserError, match='no file names'):
    imagenet.join_sources(crops, whole._replace(file_names=None))


def test_crops_without_a_picture_are_counted(data_dir, tmp_path):
  whole = load('imagenet_a', data_dir=data_dir, image_size=8)
  digits = whole.file_names[1].removesuffix('.jpg') + '5.jpg'
  crops = _write_crops(tmp_path, [whole.file_names[0], digits, 'x.jpg'])
  with pytest.raises(DataError) as error:
    imagenet.join_sources(crops, whole)
  assert f'2 of 3 pictures of {tmp_path.name}' in str(error.value)
  assert f'the first is {digits}' in str(error.value)


def test_the_longest_name_counts():
  pictures = sources.pictures_from_arrays(
    np.zeros((2, 4, 4, 3), np.uint8),
    np.zeros(2),
    class_names=('a',),
    name='a',
    file_names=('x.jpg', 'x_2.jpg'),
  )
  crops = pictures._replace(file_names=('x_2_1.jpg', 'x_1.jpg'))
  joined = imagenet.join_sources(crops, pictures)
  np.testing.assert_array_equal(joined.source, [1, 0])


def test_imagenet_streams(data_dir):
  batches = list(
    streams.stream(
      'imagenet2012',
      'validation',
      data_dir=data_dir,
      batch_size=16,
      image_size=8,
      seed=0,
    )
  )
  assert len(batches) == 3
  for batch in batches:
    levels = np.round(batch.images.mean(axis=(1, 2, 3)) / 6)
    np.testing.assert_array_equal(levels, batch.source)
    rows = batch.source[batch.mask]
    np.testing.assert_array_equal(batch.labels[batch.mask], LABELS[rows])


def test_subsets_keep_file_names(data_dir):
  pictures = load('imagenet_a', data_dir=data_dir, image_size=8)
  for rows in (np.array([3, 1]), np.arange(20) % 7 == 1):
    part = sources.subset(pictures, rows)
    expected = np.array(pictures.file_names)[rows]
    assert part.file_names == tuple(expected)


def test_some_classes_get_labels_of_their_own():
  names = imagenet.wnids()
  pictures = sources.pictures_from_arrays(
    np.zeros((3, 4, 4, 3), np.uint8),
    [150, 50, 150],
    class_names=names,
    name='some',
  )
  found = imagenet.restrict(pictures, (50, 100, 150))
  assert found.labels.tolist() == [2, 0, 2]
  assert found.class_names == (names[50], names[100], names[150])
  assert imagenet.labels_of(found.class_names) == [50, 100, 150]
  with pytest.raises(UserError, match='class 150'):
    imagenet.restrict(pictures, (50, 100))
  with pytest.raises(UserError, match='n00000000'):
    imagenet.labels_of(['n00000000'])
