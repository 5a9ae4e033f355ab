import contextlib
import io
import warnings

import numpy as np
import pytest
from PIL import Image

from jaxadv.data import images, listing, sources
from jaxadv.errors import DoubtWarning, UserError

PICTURE = images.encode(np.full((4, 4, 3), 90, np.uint8))


def _write(root, *files):
  """Writes pictures, text files and, where a name ends in '/', folders."""
  for name in files:
    path = root / name
    if name.endswith('/'):
      path.mkdir(parents=True)
      continue
    path.parent.mkdir(parents=True, exist_ok=True)
    known = path.suffix.lower() in images.suffixes()
    path.write_bytes(PICTURE if known else b'no picture')


def _open(root):
  """Gives sizes and (class, file) of every picture, in order."""
  pictures = sources.load(str(root))
  names = [pictures.class_names[label] for label in pictures.labels]
  assert pictures.file_names
  return (
    sources.splits(str(root)),
    pictures.class_names,
    list(zip(names, pictures.file_names, strict=True)),
  )


@contextlib.contextmanager
def _quietly():
  with warnings.catch_warnings():
    warnings.simplefilter('error', DoubtWarning)
    yield


def test_folders_of_systems_are_no_classes(tmp_path):
  hidden = (
    '@eaDir/cat.png',
    '__MACOSX/cat/._1.png',
    '.ipynb_checkpoints/1.png',
    'lost+found/',
    '$RECYCLE.BIN/1.png',
    'System Volume Information/',
    '#recycle/1.png',
    'Thumbs.db',
    '.DS_Store',
    'cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg',
    'cat/.1.png',
    'cat/Thumbs.db',
    'dog/desktop.ini',
  )
  _write(tmp_path, 'cat/1.png', 'dog/2.png', *hidden)
  with _quietly():
    sizes, classes, pictures = _open(tmp_path)
  assert sizes == {'train': 2} and classes == ('cat', 'dog')
  assert pictures == [('cat', '1.png'), ('dog', '2.png')]


@pytest.mark.parametrize(
  'files',
  [
    ('cat/1.png', 'eel/'),
    ('cat/1.png', 'eel/notes.txt'),
    ('cat/1.png', 'eel/.1.png'),
    ('train/cat/1.png', 'train/eel/', 'val/cat/1.png'),
    ('train/cat/1.png', 'train/eel/', 'test/cat/1.png', 'test/eel/'),
  ],
)
def test_a_class_without_pictures_is_named(tmp_path, files):
  _write(tmp_path, *files)
  with pytest.raises(UserError, match='eel in .* should hold pictures'):
    sources.load(str(tmp_path))


def test_a_split_without_pictures_is_named(tmp_path):
  _write(tmp_path, 'train/cat/1.png', 'train/dog/1.png', 'val/')
  with pytest.raises(UserError, match='val in .* should hold pictures'):
    sources.load(str(tmp_path))


def test_a_class_may_be_absent_from_a_split_that_is_tested_on(tmp_path):
  _write(
    tmp_path, 'train/cat/1.png', 'train/dog/1.png', 'val/dog/2.png', 'val/cat/'
  )
  with _quietly():
    sizes, classes, _ = _open(tmp_path)
  assert sizes == {'train': 2, 'val': 1} and classes == ('cat', 'dog')


def test_a_class_that_is_absent_from_training_is_told(tmp_path):
  _write(
    tmp_path,
    'train/cat/1.png',
    'train/dog/1.png',
    'val/cat/1.png',
    'val/Dog/2.png',
  )
  with pytest.warns(DoubtWarning, match='train .* no pictures of Dog,'):
    assert _open(tmp_path)[1] == ('Dog', 'cat', 'dog')


def test_files_that_are_no_pictures_are_counted(tmp_path):
  others = ('README', 'cat/a.TXT', 'cat/b.txt', 'dog/film.mp4')
  _write(tmp_path, 'cat/1.png', 'dog/2.png', *others)
  said = r'^4 files in .* are no pictures and were left out \(\.txt 2, '
  with pytest.warns(DoubtWarning, match=said) as found:
    _open(tmp_path)
  for count in ('no suffix 1', '.mp4 1'):
    assert count in str(found[0].message)
  _write(tmp_path / 'other', 'cat/1.png', 'cat/a.txt')
  with pytest.warns(DoubtWarning, match=r'^1 file in .* is no picture and was'):
    _open(tmp_path / 'other')


@pytest.mark.parametrize(
  'stray', ['3.png', 'train/3.png', 'test/3.png'], ids=str
)
def test_pictures_in_no_class_folder_are_counted(tmp_path, stray):
  _write(tmp_path, 'train/cat/1.png', 'train/dog/2.png', stray)
  with pytest.warns(DoubtWarning, match='^1 picture in .* lies in no class'):
    sizes, classes, _ = _open(tmp_path)
  assert sizes == {'train': 2} and classes == ('cat', 'dog')


@pytest.mark.parametrize('suffix', ['.webp', '.BMP', '.tif', '.gif', '.jfif'])
def test_every_usual_format_is_read(tmp_path, suffix):
  pixels = np.zeros((16, 16, 3), np.uint8)
  pixels[:, 8:] = 255
  (tmp_path / 'dog').mkdir()
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, images.suffixes()[suffix.lower()])
  (tmp_path / 'dog' / f'1{suffix}').write_bytes(file.getvalue())
  read = sources.load(str(tmp_path)).images[0].astype(int)
  assert np.abs(read - pixels).max() <= 3


def test_folders_in_class_folders_are_no_classes(tmp_path):
  _write(
    tmp_path,
    'cat/2020/b.png',
    'cat/2020/may/a.png',
    'cat/c.png',
    'dog/2021/d.png',
  )
  with _quietly():
    sizes, classes, pictures = _open(tmp_path)
  assert sizes == {'train': 4} and classes == ('cat', 'dog')
  assert pictures == [
    ('cat', 'b.png'),
    ('cat', 'a.png'),
    ('cat', 'c.png'),
    ('dog', 'd.png'),
  ]


def test_one_folder_in_every_class_makes_no_splits(tmp_path):
  _write(tmp_path, 'n01/images/1.JPEG', 'n02/images/2.JPEG')
  with _quietly():
    sizes, classes, _ = _open(tmp_path)
  assert sizes == {'train': 2} and classes == ('n01', 'n02')


def test_folders_that_may_be_splits_are_told_if_read_as_classes(tmp_path):
  _write(tmp_path, 'cat/2020/1.png', 'cat/2021/1.png', 'dog/2020/2.png')
  with pytest.warns(DoubtWarning, match='cat, dog in .* taken for classes '):
    sizes, classes, _ = _open(tmp_path)
  assert sizes == {'train': 3} and classes == ('cat', 'dog')


def test_classes_of_splits_may_hold_folders(tmp_path):
  _write(
    tmp_path,
    'Train/cat/images/1.png',
    'Train/dog/2.png',
    'val2017/dog/2020/3.png',
  )
  with _quietly():
    sizes, classes, pictures = _open(tmp_path)
  assert sizes == {'Train': 2, 'val2017': 1} and classes == ('cat', 'dog')
  assert pictures[-1] == ('dog', '3.png')


def test_a_class_called_train_stays_one(tmp_path):
  _write(tmp_path, 'bus/1.png', 'train/2.png')
  with _quietly():
    assert _open(tmp_path)[1] == ('bus', 'train')
  _write(tmp_path / 'deep', 'bus/1.png', 'car/2/1.png', 'car/3/1.png')
  _write(tmp_path / 'deep', 'train/2.png')
  with _quietly():
    assert _open(tmp_path / 'deep')[1] == ('bus', 'car', 'train')


@pytest.mark.parametrize(
  'second', [('night/cat/1.png', 'night/dog/1.png'), ('train/cat/1.png',)]
)
def test_splits_of_other_names_are_told_by_their_classes(tmp_path, second):
  _write(tmp_path, 'day/cat/1.png', 'day/dog/2.png', *second)
  with pytest.warns(DoubtWarning, match='day, .* are taken for splits '):
    sizes, classes, _ = _open(tmp_path)
  assert sizes['day'] == 2 and len(sizes) == 2 and classes == ('cat', 'dog')


@pytest.mark.parametrize(
  'files, said',
  [
    (('train/1.png', 'test/2.png'), 'test, train in .* no class folders'),
    (('train/a/1.png', 'eel/2.png'), 'holds train, .* beside eel, with none'),
    (
      ('train/a/1.png', 'val/a/1.png', 'doc/figures/2.png'),
      'holds train, val, .* beside doc, with none of',
    ),
    (('bus/2020/1.png', 'train/2021/2.png'), 'train, .* beside bus, with none'),
    (
      ('train/n1/1.png', 'train/n2/1.png', 'val/images/1.png'),
      'val and train of .* share no class',
    ),
    (('1.png',), 'holds no pictures in folders'),
    (('cat/1.heic',), 'holds no pictures in folders'),
  ],
)
def test_folders_that_are_neither_splits_nor_classes(tmp_path, files, said):
  _write(tmp_path, *files)
  with pytest.raises(UserError, match=said):
    sources.load(str(tmp_path))


def test_links_are_followed_but_not_in_circles(tmp_path):
  _write(tmp_path, 'data/cat/1.png', 'elsewhere/2.png')
  (tmp_path / 'data' / 'dog').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'data' / 'cat' / 'again').symlink_to(tmp_path / 'data')
  with _quietly():
    pictures = _open(tmp_path / 'data')[2]
  assert pictures == [('cat', '1.png'), ('dog', '2.png')]


def test_a_data_dir_lists_its_folders_without_complaint(tmp_path):
  _write(
    tmp_path, 'pets/cat/1.png', 'pets/a.txt', 'half/cat/1.png', 'half/eel/'
  )
  with _quietly():
    found = sources.available(tmp_path)
  assert found == {'digits': {'train': 1797}, 'pets': {'train': 1}}
  with pytest.raises(UserError, match='eel in .*half should hold pictures'):
    sources.load('half', data_dir=tmp_path)


def test_listing_is_sorted_and_leaves_nothing_out(tmp_path):
  _write(tmp_path, 'b/1.png', 'a/2.webp', 'a.png', 'c/x.pdf', '@eaDir/1.png')
  found = listing.listing(tmp_path)
  name = lambda file: file.relative_to(tmp_path).as_posix()
  assert list(map(name, found.pictures)) == ['a/2.webp', 'a.png', 'b/1.png']
  assert list(map(name, found.others)) == ['c/x.pdf']
