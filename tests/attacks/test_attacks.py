"""What is special to one attack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, losses, norms
from jaxadv.classifier import from_function
from jaxadv.errors import UserError
from jaxadv.norms import l2_ball, linf_ball
from jaxadv.perturbations.colour import rgb_to_hsv
from jaxadv.types import picture_keys


def test_fgsm_is_the_sign_of_the_gradient(trained):
  classifier, images, labels = trained
  right = jnp.argmax(classifier(images), axis=-1) == labels
  images, labels = images[right], labels[right]
  keys = picture_keys(jax.random.key(0), jnp.arange(len(labels)))

  def loss(images):
    chosen = jax.nn.one_hot(labels, 4) * jax.nn.log_softmax(classifier(images))
    return -chosen.sum()

  expected = jnp.clip(images + 0.03 * jnp.sign(jax.grad(loss)(images)), 0, 1)
  attacked = jax.jit(attacks.fgsm(0.03))(
    keys, classifier, images, labels
  ).images
  np.testing.assert_allclose(attacked, expected, atol=1e-7)


def test_pgd_counts_one_pass_a_step_and_what_judging_costs(trained):
  calls = []

  def counted(variables, images):
    jax.debug.callback(lambda: calls.append(None))
    return trained.classifier.apply(variables, images)

  classifier = from_function(counted, trained.classifier.variables)
  keys = picture_keys(jax.random.key(0), jnp.arange(40))
  for random_start, passes in (False, 6), (True, 7):
    calls.clear()
    attack = attacks.pgd(linf_ball(0.03), 0.01, 5, random_start=random_start)
    jax.block_until_ready(
      jax.jit(attack)(keys, classifier, trained.images, trained.labels)
    )
    jax.effects_barrier()
    assert len(calls) == passes


def test_pgd_by_name_takes_a_loss_and_restarts(trained):
  keys = picture_keys(jax.random.key(0), jnp.arange(40))
  hyper = {'epsilon': 0.012, 'step_size': 0.012, 'num_steps': 1}

  def run(**options):
    attack = attacks.make('pgd', **hyper, **options)
    return jax.jit(attack)(keys, *trained)

  alone, thrice = run(), run(num_restarts=3)
  assert jnp.sum(thrice.success) > jnp.sum(alone.success)
  crossed, *others = [run(loss=loss).images for loss in losses.LOSSES]
  assert not any(np.array_equal(crossed, other) for other in others)
  with pytest.raises(UserError, match='dlr compares 3 classes .* has 2'):
    two = from_function(lambda images: images.mean(axis=(1, 2))[:, :2])
    attacks.make('pgd', loss='dlr')(
      keys, two, trained.images, trained.labels % 2
    )


def test_l1_pgd_moves_pixels_that_can_still_move():
  # The steepest channel stands at the border of the box.
  weights = jnp.array([9.0, 3.0, 1.0])
  classifier = from_function(
    lambda images: jnp.stack(
      [0 * images.sum((1, 2, 3)), images.sum((1, 2)) @ weights - 12.6], axis=1
    )
  )
  images = jnp.array([1.0, 0.5, 0.5]).reshape(1, 1, 1, 3)
  labels = jnp.zeros(1, jnp.int32)
  keys = picture_keys(jax.random.key(0), jnp.arange(1))
  attack = attacks.pgd(norms.l1_ball(0.8), 0.2, 4, random_start=False)
  result = attack(keys, classifier, images, labels)
  assert result.success[0]
  np.testing.assert_allclose(result.images[0, 0, 0], [1, 1, 0.7], atol=1e-6)


@pytest.mark.filterwarnings('ignore::jaxadv.errors.DoubtWarning')
def test_early_stop_keeps_the_first_success(trained):
  keys = picture_keys(jax.random.key(0), jnp.arange(40))
  run = lambda **options: attacks.pgd(
    linf_ball(0.2), 0.01, 10, random_start=False, **options
  )(keys, trained.classifier, trained.images, trained.labels)
  early, late = run(early_stop=True), run()
  np.testing.assert_array_equal(early.success, late.success)
  steps = jnp.abs(early.images - trained.images).max(axis=(1, 2, 3)) / 0.01
  assert jnp.all(early.success)
  # Whole steps, of different numbers, the first of them no attack at all.
  np.testing.assert_allclose(steps, jnp.round(steps), atol=1e-4)
  assert len(np.unique(np.round(steps))) > 3


def test_gradient_of_a_saturated_softmax_still_points_somewhere(linear):
  sharp = from_function(lambda images: 40 * linear.classifier(images) / 2)
  keys = picture_keys(jax.random.key(0), jnp.arange(24))
  attack = attacks.pgd(
    l2_ball(1.0), 1.0, 1, random_start=False, loss=losses.margin
  )
  found = jax.jit(attack)(keys, sharp, linear.images, linear.labels)
  assert jnp.all(found.success)


def test_hsv_keeps_brightness_and_starts_with_the_hue_alone(trained):
  keys = picture_keys(jax.random.key(0), jnp.arange(40))
  never = from_function(lambda images: jnp.eye(4)[trained.labels])
  one = jax.jit(attacks.hsv(1))(keys, never, trained.images, trained.labels)
  assert not jnp.any(one.success)
  before, after = rgb_to_hsv(trained.images), rgb_to_hsv(one.images)
  np.testing.assert_allclose(after[..., 1:], before[..., 1:], atol=2e-6)
  assert jnp.abs(after[..., 0] - before[..., 0]).max() > 0.1
  many = jax.jit(attacks.hsv(50))(keys, never, trained.images, trained.labels)
  after = rgb_to_hsv(many.images)
  np.testing.assert_allclose(after[..., 2], before[..., 2], atol=2e-6)
  assert jnp.abs(after[..., 1] - before[..., 1]).max() > 0.3


def test_hsv_success_is_the_shift_that_a_colour_classifier_sees():
  # Class 1 wherever green exceeds red: every third of the circle is another
  # winner, so few trials are enough, and no red picture survives many.
  classifier = from_function(lambda images: images[..., :2].mean(axis=(1, 2)))
  images = jnp.broadcast_to(jnp.array([0.8, 0.2, 0.1]), (16, 2, 2, 3))
  labels = jnp.zeros(16, jnp.int32)
  keys = picture_keys(jax.random.key(0), jnp.arange(16))
  result = jax.jit(attacks.hsv(40))(keys, classifier, images, labels)
  assert jnp.all(result.success)
  assert jnp.all(result.images[:, 0, 0, 1] > result.images[:, 0, 0, 0])


def test_ni_leaves_flat_pictures_alone_and_ni_minus_blurs(trained):
  keys = picture_keys(jax.random.key(0), jnp.arange(40))
  always = from_function(lambda images: jnp.eye(4)[trained.labels])
  result = jax.jit(attacks.ni(-1))(keys, always, trained.images, trained.labels)
  rough = lambda images: jnp.abs(jnp.diff(images, axis=1)).mean()
  assert not jnp.any(result.success)
  assert rough(result.images) < 0.6 * rough(trained.images)
  sharp = jax.jit(attacks.ni(1))(keys, always, trained.images, trained.labels)
  assert rough(sharp.images) > 1.2 * rough(trained.images)


def test_a_broken_classifier_was_not_fooled():
  broken = from_function(
    lambda images: jnp.full((len(images), 3), jnp.nan) * images.sum()
  )
  images, labels = jnp.full((2, 4, 4, 3), 0.5), jnp.array([1, 2])
  keys = picture_keys(jax.random.key(0), jnp.arange(2))
  for name in ('pgd', 'deepfool', 'hsv', 'ni_plus'):
    hyper = {'num_trials': 3} if name == 'hsv' else {}
    attack = attacks.make(name, **hyper)
    assert not jnp.any(jax.jit(attack)(keys, broken, images, labels).success), (
      name
    )


@pytest.mark.parametrize(
  ('name', 'hyper', 'words'),
  [
    ('cw', {}, 'must be one of fgsm, bim, pgd, deepfool, '),
    ('fgsm', {'epsilon': 8}, r'epsilon is 8 .*\(0, 1\].*8/255'),
    ('fgsm', {'epsilon': float('nan')}, 'epsilon is nan'),
    ('fgsm', {'eps': 0.1}, 'no hyperparameter eps; it has epsilon'),
    ('pgd', {'norm': 'l3'}, "norm is 'l3' but must be one of linf, l2, l1"),
    ('pgd', {'loss': 'l2'}, "loss is 'l2' but must be one of ce, margin, dlr"),
    ('pgd', {'num_restarts': 0}, 'num_restarts is 0'),
    (
      'pgd',
      {'num_restarts': 2, 'random_start': False},
      'without random_start every run is the same',
    ),
    ('pgd', {'step_size': 0}, 'step_size is 0'),
    ('bim', {'num_steps': 0}, 'num_steps is 0'),
    ('deepfool', {'overshoot': -1}, 'overshoot is -1'),
    ('deepfool', {'norm': 'l1'}, "norm is 'l1' but must be 'l2' or 'linf'"),
    ('deepfool', {'num_candidates': 1}, 'num_candidates is 1'),
    ('hsv', {'num_trials': 0}, 'num_trials is 0'),
    ('ni_plus', {'filter': 'median'}, 'gaussian, laplacian, integral, mixed'),
    ('ni_minus', {'gain': -1}, 'gain is -1'),
  ],
)
def test_wrong_hyperparameters_are_named(name, hyper, words):
  with pytest.raises(UserError, match=words):
    attacks.make(name, **hyper)


def test_hsv_wants_colour(key):
  classifier = from_function(lambda images: images[:, 0, :2, 0])
  with pytest.raises(UserError, match='1 channels but .* needs 3'):
    attacks.hsv(2)(
      key[None], classifier, jnp.ones((1, 4, 4, 1)), jnp.zeros(1, jnp.int32)
    )
