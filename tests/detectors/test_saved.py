"""Detectors that leave the process and come back."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import models
from jaxadv.classifier import Normalise, Resized, from_linen
from jaxadv.detectors import saved
from jaxadv.detectors.backbone import backbone_detector
from jaxadv.errors import DataError, UserError
from jaxadv.storage import read_npz
from jaxadv.training import TrainState
from jaxadv.units import to_float, to_uint8
from tests.detectors import cases

# Of the last block of a VGG of this width.
CHANNELS = 512 // 16
ABOUT = saved.About(
  'vgg11', 1 / 16, cases.SIZE, 'fgsm', 'toy', num_classes=2, auc=0.75
)


@pytest.fixture(scope='module')
def fitted():
  """Design, classifier and the variables of a detector, not trained."""
  module, classifier = cases.network()
  design = cases.design(module, hidden=(8,))
  _, rest = models.split_variables(module, classifier.variables, 'block3')
  suffix, _ = models.split_variables(module, rest, 'block5')
  key = jax.random.key(3)
  head = {
    'Dense_0': {
      'kernel': jax.random.normal(key, (CHANNELS, 8)),
      'bias': jnp.ones(8),
    },
    'Dense_1': {'kernel': jnp.ones((8, 1)), 'bias': jnp.zeros(1)},
  }
  variables = {
    'params': {'suffix': suffix['params'], 'head': head},
    'batch_stats': suffix['batch_stats'],
  }
  return design, classifier, variables


@pytest.fixture(scope='module')
def folder(fitted, tmp_path_factory):
  folder = tmp_path_factory.mktemp('saved') / 'cell' / 'fgsm'
  saved.save(folder, *fitted, ABOUT)
  return folder


@pytest.fixture
def copy(folder, tmp_path):
  return shutil.copytree(folder, tmp_path / 'copy')


def pictures(num=5):
  return cases.pictures(0, num, cases.STRONG).images


def test_scores_are_those_of_the_detector_that_was_saved(fitted, folder):
  design, classifier, variables = fitted
  state = TrainState(
    None, variables['params'], variables['batch_stats'], None, None
  )
  detector = backbone_detector(design)
  wanted = jax.jit(functools.partial(detector.score, None))(
    classifier, state, jnp.asarray(pictures())
  )
  score, about = saved.load(folder)
  np.testing.assert_allclose(score(pictures()), wanted, rtol=1e-5)
  assert np.std(wanted) > 0
  assert about == ABOUT


def test_detectors_of_one_design_are_compiled_once(folder, copy):
  one, other = (saved.load(path)[0] for path in (folder, copy))
  assert jax.tree.structure(one) == jax.tree.structure(other)


def test_scores_have_a_gradient(folder):
  score, _ = saved.load(folder)
  gradient = jax.grad(lambda x: score(x).sum())(jnp.asarray(pictures()))
  assert float(jnp.abs(gradient).max()) > 0


def test_two_files_say_all_and_name_no_folder(folder):
  assert {p.name for p in folder.iterdir()} == {
    'detector.json',
    'variables.npz',
  }
  assert str(folder.parent) not in (folder / 'detector.json').read_text()


@pytest.mark.parametrize('backbone', models.BACKBONES)
def test_every_backbone_is_described_by_plain_values(
  fitted, tmp_path, backbone
):
  """Also with its published preprocessing, and with pictures enlarged."""
  _, classifier, variables = fitted
  known = models.BACKBONES[backbone]
  module = models.build(
    backbone,
    num_classes=7,
    width=0.25,
    image_size=known.min_size,
    **known.from_scratch,
  )
  stage = models.stage_names(module)[0]
  design = cases.design(module)
  design = type(design)(module, stage, stage, hidden=(4, 2), batch_norm=False)
  preprocess = Resized(known.min_size, known.preprocess)
  classifier = from_linen(
    module, {'params': {stage: {'w': jnp.ones(1)}}}, preprocess=preprocess
  )
  saved.save(
    tmp_path, design, classifier, variables, ABOUT._replace(backbone=backbone)
  )
  found = json.loads((tmp_path / 'detector.json').read_text())
  built = models.build(backbone, num_classes=1).clone(
    **saved._as_tuples(found['module'])
  )
  assert built == module
  assert type(design)(built, **saved._as_tuples(found['design'])) == design
  assert saved._preprocess(found['preprocess']) == preprocess


def test_an_unknown_preprocessing_is_refused(fitted, tmp_path):
  design, classifier, variables = fitted
  odd = dataclasses.replace(classifier, preprocess=lambda images: 2 * images)
  with pytest.raises(UserError, match='preprocessing'):
    saved.save(tmp_path, design, odd, variables, ABOUT)
  even = dataclasses.replace(
    classifier, preprocess=Normalise((0.5,) * 3, (0.25,) * 3)
  )
  saved.save(tmp_path, design, even, variables, ABOUT)
  assert (
    saved._preprocess(
      json.loads((tmp_path / 'detector.json').read_text())['preprocess']
    )
    == even.preprocess
  )


def test_a_changed_byte_is_seen(copy):
  file = copy / 'variables.npz'
  contents = bytearray(file.read_bytes())
  contents[len(contents) // 2] ^= 1
  file.write_bytes(contents)
  with pytest.raises(DataError, match='variables.npz'):
    saved.load(copy)
  file.unlink()
  with pytest.raises(DataError, match='variables.npz'):
    saved.load(copy)


def test_variables_of_another_detector_are_seen(copy):
  """Whole, and of the right shapes: only their hash tells."""
  file = copy / 'variables.npz'
  np.savez(file, **{k: v + 1 for k, v in read_npz(file).items()})
  with pytest.raises(DataError, match='of another detector'):
    saved.load(copy)


def change(copy, **values):
  path = copy / 'detector.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_pickled_arrays_are_refused_whatever_their_hash(copy):
  file = copy / 'variables.npz'
  np.savez(file, **{'prefix/a': np.array([{}], object)})
  change(copy, sha256=saved._sha256(file))
  with pytest.raises(DataError, match='variables.npz'):
    saved.load(copy)


def test_what_is_no_detector_says_what_would_be(copy, tmp_path):
  with pytest.raises(UserError, match='no saved detector'):
    saved.load(tmp_path / 'nowhere')
  change(copy, format_version=99)
  with pytest.raises(UserError, match='99'):
    saved.load(copy)
  change(copy, format_version=saved.FORMAT_VERSION, module={'foo': 1})
  with pytest.raises(DataError, match='detector.json'):
    saved.load(copy)
  (copy / 'detector.json').write_text('no JSON')
  with pytest.raises(DataError, match='detector.json'):
    saved.load(copy)


def test_pictures_of_another_size_are_refused(folder):
  score, _ = saved.load(folder)
  with pytest.raises(UserError, match='16, 16, 3'):
    score(np.zeros((2, 32, 32, 3), np.float32))


def test_8_bit_pictures_score_as_the_same_in_floats(folder):
  score, _ = saved.load(folder)
  levels = to_uint8(pictures())
  wanted = score(to_float(levels))
  np.testing.assert_array_equal(score(levels), wanted)
  np.testing.assert_allclose(
    score(levels / np.float64(255)), wanted, rtol=1e-4, atol=1e-4
  )
  with pytest.raises(UserError, match='divide by 255'):
    score(levels.astype(np.float32))


def test_scores_that_are_nan_never_leave(copy, fitted):
  design, classifier, variables = fitted

  def save(factor):
    broken = jax.tree.map(lambda leaf: leaf * factor, variables)
    saved.save(copy, design, classifier, broken, ABOUT)

  save(jnp.nan)
  with pytest.raises(DataError, match='variables.npz .*not finite'):
    saved.load(copy)
  save(1e30)  # Finite, but what is computed with it is not.
  score, _ = saved.load(copy)
  with pytest.raises(DataError, match='5 of 5 scores are NaN'):
    score(pictures())
