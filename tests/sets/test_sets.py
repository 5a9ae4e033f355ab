import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import units
from jaxadv.attacks.pgd import fgsm
from jaxadv.classifier import from_function, predict
from jaxadv.data import fake, images
from jaxadv.data.sources import subset
from jaxadv.errors import DataError, UserError
from jaxadv.sets import build as build_tools
from jaxadv.sets import io, natural, types

SIZE = 8
PICTURES = fake.generated_pictures(40, SIZE, num_classes=4)


def _logits(weights, pictures):
  return pictures.reshape(len(pictures), -1) @ weights


def _victim(seed=0):
  """Classifies by the means of the classes, with some noise on them."""
  flat = PICTURES.images.reshape(40, -1) / 255 - 0.5
  means = np.stack([flat[PICTURES.labels == k].mean(0) for k in range(4)], 1)
  noise = np.random.default_rng(seed).normal(size=means.shape)
  weights = (means + 0.1 * noise).astype(np.float32)
  return from_function(_logits, jnp.asarray(weights - weights.mean(0)))


def _example(n=20):
  rng = np.random.default_rng(0)
  return types.AdversarialSet(
    images=rng.integers(0, 256, (n, 6, 5, 3), np.uint8),
    labels=rng.integers(0, 3, n).astype(np.int32),
    source=rng.permutation(1000)[:n].astype(np.int32),
    success_float=rng.random(n) < 0.7,
    success=rng.random(n) < 0.5,
    kind='pgd',
    class_names=('ant', 'bee', 'cat'),
    provenance={'attack': {'epsilon': 8 / 255}, 'seed': 3, 'versions': {}},
  )


def _assert_equal(found, expected):
  for name, value in expected._asdict().items():
    other = getattr(found, name)
    if isinstance(value, np.ndarray):
      assert other.dtype == value.dtype, name
      np.testing.assert_array_equal(other, value, err_msg=name)
    else:
      assert other == value, name


@pytest.mark.parametrize('channels', [1, 3])
def test_a_set_survives_the_disk(tmp_path, channels):
  example = _example()
  example = example._replace(images=example.images[..., :channels])
  io.write(example, tmp_path / 'set')
  assert os.listdir(tmp_path) == ['set']
  _assert_equal(io.read(tmp_path / 'set'), example)


def test_what_a_set_may_hold_besides_survives_too(tmp_path):
  rng = np.random.default_rng(1)
  example = _example()._replace(
    l2=rng.random(20),
    linf=rng.random(20),
    images_float=rng.random((20, 6, 5, 3), np.float32),
  )
  io.write(example, tmp_path / 'set')
  _assert_equal(io.read(tmp_path / 'set'), example)
  some = types.select(example, np.array([3, 1]))
  np.testing.assert_array_equal(some.images_float, example.images_float[[3, 1]])
  np.testing.assert_array_equal(some.l2, example.l2[[3, 1]])
  assert some.kind == example.kind


def test_others_read_a_set_with_tfds_alone(tmp_path):
  example = _example()
  io.write(example, tmp_path / 'set')
  code = f"""
import sys
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory({str(tmp_path / 'set')!r})
source = builder.as_data_source('train')
keys = ('label', 'source', 'success', 'success_float')
print([[int(e[k]) for k in keys] + [int(e['image'].sum())] for e in source])
assert builder.info.metadata['kind'] == 'pgd'
assert 'tensorflow' not in sys.modules and 'jaxadv' not in sys.modules
"""
  ran = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  expected = np.stack(
    [
      example.labels,
      example.source,
      example.success,
      example.success_float,
      example.images.sum(axis=(1, 2, 3)),
    ],
    axis=1,
  )
  assert ran.stdout.strip() == str(expected.astype(int).tolist())


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
  calls = []

  def fail(pixels):
    calls.append(1)
    if len(calls) == 5:
      raise OSError(28, 'No space left on device')
    return b''

  monkeypatch.setattr(images, 'encode', fail)
  with pytest.raises(DataError, match='disk is full'):
    io.write(_example(), tmp_path / 'set')
  assert os.listdir(tmp_path) == []


def test_write_and_read_refuse(tmp_path):
  with pytest.raises(DataError, match='holds no adversarial set'):
    io.read(tmp_path / 'absent')
  (tmp_path / 'notes.txt').write_text('mine')
  with pytest.raises(UserError, match='not empty'):
    io.write(_example(), tmp_path)
  with pytest.raises(UserError, match='must be one word'):
    io.write(_example()._replace(kind='a kind'), tmp_path / 'set')


def test_predictions_do_not_depend_on_the_batch():
  victim = _victim()
  logits = victim(jnp.asarray(units.to_float(PICTURES.images)))
  for batch_size in (1, 16, 64):
    np.testing.assert_array_equal(
      predict(victim, PICTURES.images, batch_size).argmax(-1),
      np.argmax(logits, axis=-1),
    )


def test_build_judges_before_and_after_rounding():
  victim = _victim()
  correct = build_tools.correct_pictures(victim, PICTURES)
  assert 0 < len(correct.labels)
  settings = {'name': 'fgsm', 'epsilon': 60 / 255}
  found = build_tools.build(
    fgsm(60 / 255),
    jax.random.key(0),
    victim,
    correct,
    kind='fgsm',
    settings=settings,
    batch_size=16,
  )
  assert found.images.dtype == np.uint8
  change = found.images.astype(int) - correct.images.astype(int)
  assert np.abs(change).max() == 60
  np.testing.assert_array_equal(found.source, correct.source)
  np.testing.assert_array_equal(
    found.success, predict(victim, found.images).argmax(-1) != correct.labels
  )
  judged = predict(victim, found.images_float).argmax(-1) != correct.labels
  np.testing.assert_array_equal(found.success_float, judged)
  change = found.images_float - correct.images / np.float32(255)
  np.testing.assert_allclose(found.linf, abs(change).max((1, 2, 3)), atol=1e-6)
  assert found.success.any()
  assert found.provenance['attack'] == settings
  assert found.provenance['data'] == correct.fingerprint
  others = {
    types.weights_fingerprint(_victim(seed).variables) for seed in (0, 0, 1)
  }
  assert len(others) == 2 and found.provenance['victim'] in others


def test_an_array_in_place_of_pictures_is_refused():
  array = PICTURES.images
  with pytest.raises(UserError, match='ndarray without .*from_arrays'):
    build_tools.correct_pictures(_victim(), array, 5)
  with pytest.raises(UserError, match='ndarray without .*from_arrays'):
    build_tools.build(
      fgsm(0.1),
      jax.random.key(0),
      _victim(),
      array,
      kind='fgsm',
      settings={},
    )


def test_natural_pictures_are_the_errors_of_the_reference():
  reference = from_function(
    _logits, jnp.asarray(np.random.default_rng(5).normal(size=(192, 4)))
  )
  wrong = predict(reference, PICTURES.images).argmax(-1) != PICTURES.labels
  found = natural.natural([reference], PICTURES)
  np.testing.assert_array_equal(found.source, np.flatnonzero(wrong))
  np.testing.assert_array_equal(found.images, PICTURES.images[wrong])
  assert found.success.all() and found.kind == 'natural'
  some = natural.natural([reference], PICTURES, 3)
  np.testing.assert_array_equal(some.source, np.flatnonzero(wrong)[:3])
  with pytest.raises(UserError, match=f'misclassifies {wrong.sum()} of 40'):
    natural.natural([reference], PICTURES, 41)
  plus = natural.natural_plus(
    [reference],
    lambda x: x,
    lambda h: reference(h),
    found,
    batch_size=16,
  )
  np.testing.assert_array_equal(plus.source, found.source)
  assert plus.kind == 'natural_plus' and plus.images.shape == found.images.shape
  assert np.any(plus.images != found.images)
  np.testing.assert_array_equal(
    plus.success, predict(reference, plus.images).argmax(-1) != plus.labels
  )


def test_natural_pictures_of_several_references():
  references = [
    from_function(
      _logits, jnp.asarray(np.random.default_rng(seed).normal(size=(192, 4)))
    )
    for seed in (5, 6)
  ]
  wrong = [
    predict(r, PICTURES.images).argmax(-1) != PICTURES.labels
    for r in references
  ]
  found = natural.natural(references, PICTURES)
  first, second = np.flatnonzero(wrong[0]), np.flatnonzero(wrong[1] & ~wrong[0])
  np.testing.assert_array_equal(found.source, [*first, *second])
  plus = natural.natural_plus(
    references, lambda x: x, lambda h: references[0](h), found
  )
  # Each crop is shown to the reference that erred on the whole picture.
  on_crops = [
    predict(r, plus.images).argmax(-1) != plus.labels for r in references
  ]
  judges = [0] * len(first) + [1] * len(second)
  np.testing.assert_array_equal(
    plus.success, [on_crops[j][row] for row, j in enumerate(judges)]
  )
  assert len(second) and not plus.success.all()


def test_crop_takes_the_largest_region_with_its_margin():
  maps = np.zeros((1, 40, 40), np.float32)
  maps[0, 10:20, 22:32] = 1  # The object.
  maps[0, 30:34, 2:6] = 1  # Smaller, though as bright.
  pictures = np.zeros((1, 40, 40, 3), np.uint8)
  pictures[0, 10:20, 22:32] = 255
  cropped = natural.crop_to_saliency(pictures, maps)
  # 10 pixels and 15 % at both ends are 13, so the object fills (10 / 13)^2.
  assert cropped.shape == (1, 40, 40, 3)
  assert abs(cropped.mean() / 255 - (10 / 13) ** 2) < 0.02
  np.testing.assert_array_equal(cropped[0, 20, 20], [255] * 3)


def test_crop_stays_inside_the_picture():
  maps = np.zeros((2, 20, 20), np.float32)
  maps[0, 0:8, 15:20] = 1
  maps[1] = 0.5  # Constant: nothing stands out.
  pictures = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), np.uint8)
  cropped = natural.crop_to_saliency(pictures, maps)
  np.testing.assert_array_equal(cropped[1], pictures[1])
  corner = images.resize(pictures[:1, :10, 10:], 20)
  np.testing.assert_array_equal(cropped[:1], corner)


def test_a_subset_keeps_its_sources():
  part = subset(PICTURES, np.array([7, 3]))
  np.testing.assert_array_equal(part.source, [7, 3])
  np.testing.assert_array_equal(part.images, PICTURES.images[[7, 3]])
  assert part.fingerprint != PICTURES.fingerprint
