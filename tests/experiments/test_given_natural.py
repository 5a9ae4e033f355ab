"""Natural kinds from data sets of their own, with controls of two origins."""

import dataclasses

import numpy as np
import pytest

from experiments.connection import detectors
from experiments.connection.config import get_config
from jaxadv.data import sources
from jaxadv.data.images import encode
from jaxadv.errors import UserError
from jaxadv.training import mesh

pytestmark = pytest.mark.slow

N = 20


def _write(folder, pictures, rows, name='{}.png', classes=10):
  for row in rows:
    label = pictures.labels[row]
    if label < classes:
      place = folder / str(label)
      place.mkdir(parents=True, exist_ok=True)
      file = place / name.format(f'picture{row}')
      file.write_bytes(encode(pictures.images[row]))


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Digits as a set with two splits, a natural one, and crops of some."""
  root = tmp_path_factory.mktemp('pictures')
  digits = sources.load('digits', image_size=16, cache_dir=root / 'prepared')
  _write(root / 'set' / 'train', digits, range(600))
  _write(root / 'set' / 'test', digits, range(600, 900))
  _write(root / 'natural', digits, range(900, 1000))
  _write(root / 'crops', digits, range(940, 1000), '{}_0.png')
  return root


def _config(folders, **options):
  options = {
    'natural_dataset': str(folders / 'natural'),
    'natural_plus_dataset': str(folders / 'crops'),
  } | options
  return dataclasses.replace(
    get_config('quick', str(folders / 'set')),
    image_size=16,
    num_pictures=N,
    attacks=('natural', 'natural_plus', 'fgsm'),
    victim='vgg11:0.125',
    victim_epochs=4,
    reference=('vgg13:0.0625',),
    reference_epochs=1,
    **options,
  )


@pytest.fixture(scope='module')
def sets(folders):
  workdir = str(folders / 'runs' / 'run')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mesh, 'all_devices', lambda: None)
    return detectors.prepare_inputs(
      _config(folders), workdir, lambda text: None
    ).collection.sets


def test_crops_stand_beside_their_pictures(sets):
  assert {len(found.labels) for found in sets.values()} == {N}
  natural, plus = sets['natural'], sets['natural_plus']
  np.testing.assert_array_equal(natural.source, plus.source)
  # The crops here are the whole pictures again.
  np.testing.assert_array_equal(natural.images, plus.images)
  np.testing.assert_array_equal(natural.labels, plus.labels)


def test_controls_come_from_other_pictures(sets):
  clean, other = sets['clean'], sets['clean_other']
  assert not set(clean.source) & set(sets['clean_classes'].source)
  ids = [set(sets[k].source) for k in ('clean', 'clean_other', 'natural')]
  assert len(set.union(*ids)) == 3 * N
  np.testing.assert_array_equal(other.source, sets['clean_other_plus'].source)
  assert not sets['clean_other'].success.any()


def test_other_classes_are_refused(folders, tmp_path):
  digits = sources.load('digits', image_size=16, cache_dir=folders / 'prepared')
  _write(tmp_path / 'two', digits, range(900, 1000), classes=2)
  config = _config(
    folders,
    natural_dataset=str(tmp_path / 'two'),
    natural_plus_dataset='',
  )
  with pytest.raises(UserError, match='two has other classes'):
    detectors.prepare_inputs(
      config, str(folders / 'runs' / 'two'), lambda text: None
    )
