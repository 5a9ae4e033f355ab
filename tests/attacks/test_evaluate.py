"""Whole sets: the same pictures whatever the batches, devices and kills."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, norms
from jaxadv.attacks import evaluate, evaluate_over, robust_accuracy_curve
from jaxadv.classifier import from_function
from jaxadv.errors import DataError, UserError
from jaxadv.losses import succeeded
from jaxadv.types import picture_keys
from jaxadv.units import to_float

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
  flat = np.abs(delta).reshape(40, -1)
  np.testing.assert_allclose(whole.l1, flat.sum(1), rtol=1e-5)
  np.testing.assert_array_equal(
    whole.l0, (delta != 0).any(axis=3).sum(axis=(1, 2))
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

  with pytest.raises(DataError, match='try batch_size=64'):
    run(trained._replace(classifier=from_function(full)))


def targets_of(target):
  """The class after the true one."""
  return (np.asarray(target.labels) + 1) % 4


def test_targets_are_reached_and_labels_stay_the_truth(trained, whole):
  attack = attacks.make('pgd', epsilon=0.05, step_size=0.01, targeted=True)
  targets = targets_of(trained)
  found = run(trained, attack, targets=targets)
  np.testing.assert_array_equal(found.correct, whole.correct)
  predicted = np.argmax(trained.classifier(jnp.asarray(found.images)), axis=-1)
  np.testing.assert_array_equal(found.success, predicted == targets)
  assert 0.3 < found.attack_success_rate < 1
  lost = ~found.correct | found.success
  assert found.robust_accuracy == np.mean(~lost) < found.correct.mean()


def test_attacks_made_of_attacks_go_the_same_way(trained, whole):
  parts = [attacks.fgsm(0.005), PGD]
  found = run(trained, attacks.sequence(parts), num_slots=8)
  assert np.all(found.success >= whole.success)
  assert found.linf[found.success].max() <= 0.03 + 1e-6
  again = run(trained, attacks.sequence(parts), batch_size=16)
  assert_same(found, again)


EPSILONS = [0.005, 0.01, 0.02]


def pgd(epsilon):
  return attacks.pgd(norms.linf_ball(epsilon), epsilon / 3, 4)


def run_over(target, **options):
  images, labels = np.asarray(target.images), np.asarray(target.labels)
  return evaluate_over(
    pgd,
    EPSILONS,
    jax.random.key(0),
    target.classifier,
    images,
    labels,
    100 + np.arange(40),
    **options,
  )


@pytest.fixture(scope='module')
def several(trained):
  return run_over(trained)


def test_many_epsilons_are_compiled_once(trained, several):
  make = chex.assert_max_traces(lambda epsilon: pgd(epsilon), n=1)
  images, labels = np.asarray(trained.images), np.asarray(trained.labels)
  key = jax.random.key(0)
  evaluate_over(make, EPSILONS, key, trained.classifier, images, labels)
  for epsilon, found in zip(EPSILONS, several, strict=True):
    alone = run(trained, pgd(epsilon))
    np.testing.assert_array_equal(found.success, alone.success)
    np.testing.assert_allclose(found.images, alone.images, atol=1e-6)
    assert found.linf.max() == pytest.approx(epsilon, abs=1e-6)


def test_many_epsilons_resume(trained, several, tmp_path):
  steps = []

  def stop(done, total):
    steps.append((done, total))
    if done == 60:
      raise KeyboardInterrupt

  options = {'batch_size': 20, 'resume_dir': tmp_path, 'progress': stop}
  with pytest.raises(KeyboardInterrupt):
    run_over(trained, **options)
  assert steps[:2] == [(0, 120), (20, 120)]
  steps.clear()
  stop_not = lambda done, total: steps.append((done, total))
  again = run_over(trained, **options | {'progress': stop_not})
  # Every epsilon reports what it finds, then what it does.
  assert steps == [(40, 120), (60, 120), (80, 120), (80, 120)] + [
    (100, 120),
    (120, 120),
  ]
  for one, other in zip(several, again, strict=True):
    assert_same(one, other)


def test_curve_takes_the_smallest_change_that_succeeded(trained, several):
  shares = robust_accuracy_curve(several, EPSILONS, 'linf')
  values = [share.value for share in shares]
  assert values == sorted(values, reverse=True)
  assert len(set(values)) == 3
  for share, found in zip(shares, several, strict=True):
    assert share.n == 40
    assert share.value <= found.robust_accuracy
  first = robust_accuracy_curve(several[0], [0.004, 0.005], 'linf')
  assert first[0].value > first[1].value == several[0].robust_accuracy
  minimal = run(trained, attacks.deepfool(norm='linf'))
  curve = robust_accuracy_curve(minimal, [0.0, *EPSILONS, 1.0], 'linf')
  assert curve[0].value == minimal.correct.mean()
  held = minimal.correct & (minimal.linf > EPSILONS[1])
  assert curve[2].hits == held.sum()
  assert curve[-1].hits == 0
  both = robust_accuracy_curve([minimal, *several], EPSILONS, 'linf')
  for share, one, other in zip(both, curve[1:], shares, strict=False):
    assert share.hits <= min(one.hits, other.hits)
  with pytest.raises(UserError, match='must be one of linf, l2'):
    robust_accuracy_curve(minimal, EPSILONS, 'l7')
  with pytest.raises(UserError, match=r'evaluations of \[\] pictures'):
    robust_accuracy_curve([], EPSILONS, 'linf')


def noisy(target, scale=3.0):
  """The classifier with declared noise on its logits."""

  def logits(variables, images, keys):
    draw = jax.vmap(lambda key: jax.random.normal(key, (4,)))
    return target.classifier(images) + scale * draw(keys)

  return target._replace(classifier=from_function(logits, {}, stochastic=True))


class Lucky(NamedTuple):
  done: jax.Array


# Changes nothing and waits for a draw in which the classifier errs.
LUCKY = attacks.Attack(
  init=lambda keys, classifier, images, labels: Lucky(labels < 0),
  step=lambda classifier, images, labels, state: Lucky(
    state.done | succeeded(classifier(images), labels)
  ),
  finish=lambda classifier, images, labels, state: attacks.AttackResult(
    images, state.done
  ),
  max_steps=30,
)


def test_a_declared_stochastic_classifier_is_judged_with_fresh_draws(trained):
  target = noisy(trained)
  keys = picture_keys(jax.random.key(0), 100 + jnp.arange(40))
  assert jax.jit(LUCKY)(keys, *target).success.mean() > 0.9
  found = run(target, LUCKY)
  assert_same(found, run(target, LUCKY, batch_size=7, num_slots=3))
  errs = ~found.correct
  assert np.any(found.success != errs)
  assert abs(found.success.mean() - errs.mean()) < 0.3
  assert found.success.mean() < 0.8
  other = run(target, LUCKY, seed=1)
  assert np.any(found.correct != other.correct)


@pytest.mark.parametrize('when', ['traced', 'run', 'picked'])
def test_undeclared_randomness_is_refused(trained, when):
  generator = np.random.default_rng(0)

  def draw(images):
    noise = generator.normal(size=(len(images), 4))
    return noise.astype(np.float32)

  def logits(images):
    clean = trained.classifier(images)
    if when == 'traced':
      return clean + draw(images)
    if when == 'picked':
      return clean * float(generator.uniform())
    shape = jax.ShapeDtypeStruct((len(images), 4), jnp.float32)
    return clean + jax.pure_callback(draw, shape, images)

  with pytest.raises(UserError, match='other logits .* stochastic=True'):
    run(trained._replace(classifier=from_function(logits)))


@pytest.mark.parametrize(
  ('attack', 'labels', 'targets', 'words'),
  [
    ('fgsm', [0, 1, 3], None, 'labels hold 3 in row 2 .* classes 0 to 2'),
    ('fgsm', [0, -1, 2], None, 'labels hold -1 in row 1'),
    ('fgsm', [0, 1, 2], [1, 2, 0], 'targets are given .* untargeted'),
    ('targeted', [0, 1, 2], None, 'targeted but targets are None'),
    ('targeted', [0, 1, 2], [1, 1, 0], 'target in row 1 is 1, the true'),
    ('targeted', [0, 1, 2], [1, 2, 9], 'targets hold 9 in row 2'),
    ('targeted', [0, 1, 2], [1, 2], 'targets are .* one for each of the 3'),
  ],
)
def test_wrong_classes_are_named(attack, labels, targets, words):
  classifier = from_function(lambda images: images.mean(axis=(1, 2)))
  attack = attacks.fgsm(0.1, targeted=attack == 'targeted')
  with pytest.raises(UserError, match=words):
    evaluate(
      attack, jax.random.key(0), classifier, GOOD, labels, targets=targets
    )


def test_a_classifier_that_gives_no_logits_is_named():
  classifier = from_function(lambda images: images.mean(axis=(1, 2, 3)))
  with pytest.raises(UserError, match=r'returns \[1\] for 1 pictures'):
    evaluate(PGD, jax.random.key(0), classifier, GOOD, np.zeros(3, int))


GOOD = np.full((3, 4, 4, 3), 0.5, np.float32)


def spoilt(row, value):
  images = GOOD.copy()
  images[row, 0, 0, 0] = value
  return images


@pytest.mark.parametrize(
  ('images', 'labels', 'error', 'words'),
  [
    (spoilt(1, np.nan), [0, 1, 2], DataError, 'row 1 .*holds NaN'),
    (spoilt(2, 1.5), [0, 1, 2], UserError, 'row 2 .*ranges .* 1.5'),
    (spoilt(0, -0.1), [0, 1, 2], UserError, 'row 0 .*ranges from -0.1'),
    (GOOD.astype(int), [0, 1, 2], UserError, 'int64 but must be uint8'),
    (200 * GOOD, [0, 1, 2], UserError, 'divide by 255, or give uint8'),
    (GOOD.transpose(0, 3, 1, 2)[..., :0], [0, 1, 2], UserError, 'N > 0'),
    (np.full((3, 3, 8, 8), 0.5), [0, 1, 2], UserError, 'looks like .N, C, H'),
    (GOOD, np.eye(3, dtype=int), UserError, r'argmax\(-1\)'),
    (GOOD, [0, 1, 2**33], UserError, 'hold 8589934592 in row 2'),
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
  with pytest.raises(UserError, match='epsilon is 2.0'):
    evaluate_over(pgd, [0.1, 2.0], jax.random.key(0), *trained)
  with pytest.raises(UserError, match='epsilons are .* at least one'):
    evaluate_over(pgd, [], jax.random.key(0), *trained)
  with pytest.raises(UserError, match="needs one, 'data'"):
    run(trained, mesh=jax.make_mesh((4,), ('model',)))
