"""Whole sets: the same pictures whatever the batches, devices and kills."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks
from jaxadv.attacks import evaluate
from jaxadv.classifier import from_function
from jaxadv.data.images import to_float
from jaxadv.errors import DataError, UserError
from jaxadv.types import picture_keys

PGD = attacks.make('pgd', epsilon=0.03, step_size=0.01, num_steps=5)


@pytest.fixture(scope='module')
def whole(trained):
  return run(trained)


def run(target, attack=PGD, seed=0, **options):
  images, labels = np.asarray(target.images), np.asarray(target.labels)
  source = 100 + np.arange(len(labels))
  key = jax.random.key(seed)
  return evaluate(
    attack, key, target.classifier, images, labels, source, **options
  )


def assert_same(one, other):
  for name in ('images', 'images_uint8', 'success', 'correct', 'l2', 'linf'):
    np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_is_the_attack_itself(trained, whole):
  keys = picture_keys(jax.random.key(0), 100 + jnp.arange(40))
  result = jax.jit(PGD)(keys, *trained)
  np.testing.assert_array_equal(whole.images, result.images)
  np.testing.assert_array_equal(whole.success, result.success)
  predicted = lambda images: jnp.argmax(trained.classifier(images), axis=-1)
  clean = predicted(trained.images) == trained.labels
  np.testing.assert_array_equal(whole.correct, clean)
  rounded = jnp.asarray(whole.images_uint8, jnp.float32) / 255
  np.testing.assert_array_equal(
    whole.success_uint8, predicted(rounded) != trained.labels
  )
  assert np.abs(whole.images - rounded).max() <= 0.5 / 255 + 1e-6


def test_figures(trained, whole):
  delta = whole.images - np.asarray(trained.images)
  np.testing.assert_allclose(whole.linf, np.abs(delta).max((1, 2, 3)))
  np.testing.assert_allclose(
    whole.l2, np.sqrt((delta**2).sum((1, 2, 3))), rtol=1e-5
  )
  right = whole.correct
  assert 0 < right.sum() < 40
  assert whole.attack_success_rate == whole.success[right].mean()
  assert whole.robust_accuracy == np.mean(~whole.success)
  both = whole.success_uint8[right & whole.success]
  assert whole.survives_uint8 == both.mean()


def test_batches_slots_and_devices_change_nothing(trained, whole):
  mesh = jax.make_mesh((4,), ('data',))
  assert_same(whole, run(trained, batch_size=16))
  assert_same(whole, run(trained, batch_size=17, num_slots=4))
  assert_same(whole, run(trained, batch_size=16, mesh=mesh))
  assert_same(whole, run(trained, batch_size=32, num_slots=3, mesh=mesh))


def test_uint8_pictures_are_taken_as_they_are(trained):
  images = np.round(np.asarray(trained.images) * 255).astype(np.uint8)
  labels = np.asarray(trained.labels)
  given = jax.random.key(0), trained.classifier
  one = evaluate(PGD, *given, images, labels)
  other = evaluate(PGD, *given, to_float(images), labels)
  np.testing.assert_array_equal(one.images, other.images)
  assert one.linf.max() <= 0.03 + 1e-6


def test_resumes_without_repeating_and_with_another_batch_size(
  trained, whole, tmp_path
):
  def stop(done, total):
    if done == 32:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(trained, batch_size=16, resume_dir=tmp_path, progress=stop)
  steps = []
  again = run(
    trained,
    batch_size=5,
    resume_dir=tmp_path,
    progress=lambda done, total: steps.append((done, total)),
  )
  assert steps == [(32, 40), (37, 40), (40, 40)]
  assert_same(whole, again)


def test_refuses_the_folder_of_another_run(trained, tmp_path):
  run(trained, resume_dir=tmp_path)
  other = attacks.make('pgd', epsilon=0.03, step_size=0.011, num_steps=5)
  with pytest.raises(UserError, match='other attack'):
    run(trained, attack=other, resume_dir=tmp_path)
  with pytest.raises(UserError, match='other key'):
    run(trained, seed=1, resume_dir=tmp_path)
  scaled = jax.tree.map(lambda leaf: 2 * leaf, trained.classifier)
  with pytest.raises(UserError, match='other weights'):
    run(trained._replace(classifier=scaled), resume_dir=tmp_path)
  with pytest.raises(UserError, match='other labels'):
    run(trained._replace(labels=3 - trained.labels), resume_dir=tmp_path)


def test_a_plain_function_can_be_attacked(trained, whole):
  plain = lambda images: trained.classifier(images)
  assert_same(whole, run(trained._replace(classifier=plain)))


def test_a_broken_batch_is_named(trained, tmp_path):
  run(trained, batch_size=20, resume_dir=tmp_path)
  (tmp_path / 'rows-20-20.npz').write_bytes(b'PK')
  with pytest.raises(DataError, match='rows-20-20.npz'):
    run(trained, resume_dir=tmp_path)


def test_names_the_picture_on_which_the_classifier_breaks(trained):
  def fragile(images):
    logits = trained.classifier(images)
    broken = jnp.abs(images - trained.images[21]).max(axis=(1, 2, 3)) == 0
    return jnp.where(broken[:, None], jnp.nan, logits)

  with pytest.raises(DataError, match='row 21'):
    run(trained._replace(classifier=from_function(fragile)), batch_size=16)


def test_out_of_memory_says_which_batch_size_to_try(trained):
  def full(images):
    raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory')

  with pytest.raises(DataError, match='--batch_size=64'):
    run(trained._replace(classifier=from_function(full)))


GOOD = np.full((3, 4, 4, 3), 0.5, np.float32)


def spoilt(row, value):
  images = GOOD.copy()
  images[row, 0, 0, 0] = value
  return images


@pytest.mark.parametrize(
  ('images', 'labels', 'error', 'words'),
  [
    (spoilt(1, np.nan), [0, 1, 2], DataError, 'row 1 holds NaN'),
    (spoilt(2, 1.5), [0, 1, 2], UserError, 'row 2 ranges .* 1.5'),
    (spoilt(0, -0.1), [0, 1, 2], UserError, 'row 0 ranges from -0.1'),
    (GOOD.astype(float), [0, 1, 2], UserError, 'float64 but must be uint8'),
    (GOOD[0], [0, 1, 2], UserError, r'must be \[N, H, W, C\]'),
    (GOOD, [0, 1], UserError, 'one for each of the 3 pictures'),
    (GOOD, [0.0, 1.0, 2.0], UserError, 'must be integers'),
  ],
)
def test_wrong_pictures_and_labels_are_named(images, labels, error, words):
  classifier = from_function(lambda images: images.mean(axis=(1, 2)))
  with pytest.raises(error, match=words):
    evaluate(PGD, jax.random.key(0), classifier, images, np.array(labels))


def test_wrong_options_are_named(trained):
  mesh = jax.make_mesh((4,), ('data',))
  with pytest.raises(UserError, match='multiple of .* devices, 4'):
    run(trained, batch_size=10, mesh=mesh)
  with pytest.raises(UserError, match='batch_size is 0'):
    run(trained, batch_size=0)
  with pytest.raises(UserError, match='num_slots is 0'):
    run(trained, num_slots=0)
  with pytest.raises(UserError, match="needs one, 'data'"):
    run(trained, mesh=jax.make_mesh((4,), ('model',)))
