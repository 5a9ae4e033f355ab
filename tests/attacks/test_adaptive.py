"""Attacks on a detector or a defence along with the classifier."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, losses
from jaxadv.attacks.adaptive import bpda, eot, evading, joint_classifier
from jaxadv.attacks.ddn import ddn
from jaxadv.classifier import from_function
from jaxadv.errors import UserError
from jaxadv.norms import l2, l2_ball, linf_ball
from jaxadv.types import bound, picture_keys

SHAPE = (4, 4, 1)
NUM = 12


def keys(num=NUM):
  return picture_keys(jax.random.key(0), jnp.arange(num))


@pytest.fixture(scope='module')
def two_planes():
  """A linear classifier and a linear detector, and what defeats both.

  Of each picture: the smallest change that crosses the plane between the two
  classes and does not cross that of the detector.
  """
  rng = np.random.default_rng(0)
  across = rng.normal(size=16)
  alarm = 0.8 * across + rng.normal(size=16)  # The shortest way is flagged.
  normals = np.stack([across, alarm])
  # How far the logits are from a tie, and the scores from an alarm.
  gaps = np.stack([0.5 + 0.05 * np.arange(NUM), np.full(NUM, 0.1)])
  weights = np.linalg.solve(normals @ normals.T, gaps)
  assert (weights[0] > 0).all() and (weights[1] < 0).all()  # Both matter.
  change = weights.T @ normals
  noise = 0.02 * rng.normal(size=(NUM, 16))
  noise -= np.linalg.lstsq(normals, normals @ noise.T, rcond=None)[0].T
  images = (0.5 - change + noise).reshape(NUM, *SHAPE)
  images, normals, change = jax.tree.map(jnp.float32, (images, normals, change))

  def project(normal, images):
    return (images - 0.5).reshape(len(images), -1) @ normal

  classifier = from_function(
    lambda across, images: jnp.stack(
      [jnp.zeros(len(images)), project(across, images)], axis=-1
    ),
    normals[0],
  )
  score = lambda images: project(normals[1], images)
  labels = jnp.zeros(NUM, jnp.int32)
  return classifier, score, images, labels, jnp.linalg.norm(change, axis=1)


def defeated(classifier, score, images, labels):
  fooled = losses.succeeded(classifier(images), labels)
  return fooled & (score(images) <= 0)


@pytest.mark.parametrize('targeted', [False, True])
def test_evading_needs_the_joint_distance_and_no_more(two_planes, targeted):
  classifier, score, images, labels, exact = two_planes
  wanted = labels + targeted

  @jax.jit
  def run(factor):
    ball = l2_ball(factor * exact)
    attack = attacks.pgd(
      ball, 0.03 * exact, 100, targeted=targeted, early_stop=True
    )
    search = attacks.over(
      lambda beta: evading(attack, score, beta), jnp.array([0.1, 1.0, 10.0])
    )
    return search(keys(), classifier, images, wanted)

  result = run(1.1)
  assert jnp.all(result.success)
  assert jnp.all(defeated(classifier, score, result.images, labels))
  assert not jnp.any(run(0.99).success)


def test_an_attack_that_ignores_the_detector_is_flagged(two_planes):
  classifier, score, images, labels, exact = two_planes
  attack = attacks.pgd(l2_ball(1.1 * exact), 0.03 * exact, 100)
  result = jax.jit(attack)(keys(), classifier, images, labels)
  assert jnp.all(result.success)
  assert not jnp.any(defeated(classifier, score, result.images, labels))


def test_a_minimal_norm_attack_counts_unflagged_successes_only(two_planes):
  classifier, score, images, labels, exact = two_planes
  attack = attacks.over(
    lambda beta: evading(ddn(300, levels=None), score, beta),
    jnp.array([0.1, 1.0, 10.0]),
    smallest=l2,
  )
  result = jax.jit(attack)(keys(), classifier, images, labels)
  assert jnp.all(result.success)
  assert jnp.all(defeated(classifier, score, result.images, labels))
  size = l2(result.images - images)
  assert jnp.all(size >= 0.999 * exact) and jnp.all(size <= 1.1 * exact)


def test_beta_is_searched_for_every_picture(two_planes):
  classifier, score, images, labels, exact = two_planes
  attack = attacks.pgd(
    l2_ball(1.1 * exact), 0.03 * exact, 100, random_start=False
  )
  found = [
    jax.jit(evading(attack, score, beta))(
      keys(), classifier, images, labels
    ).success
    for beta in (0.0, 1.0)
  ]
  assert not jnp.any(found[0]) and jnp.any(found[1])
  mixed = jnp.arange(NUM) % 2
  rows = jax.jit(evading(attack, score, mixed.astype(jnp.float32)))(
    keys(), classifier, images, labels
  )
  np.testing.assert_array_equal(rows.success, found[1] & (mixed == 1))


def test_a_misclassified_picture_that_is_flagged_goes_on(two_planes):
  classifier, score, images, _, _ = two_planes
  wrong = jnp.ones(NUM, jnp.int32)
  alarmed = lambda images: score(images) + 0.2
  attack = attacks.pgd(linf_ball(0.1), 0.02, 20, random_start=False)
  result = jax.jit(evading(attack, alarmed))(keys(), classifier, images, wrong)
  assert jnp.all(alarmed(images) > 0)
  assert jnp.all(result.success) and jnp.all(alarmed(result.images) <= 0)
  resting = jax.jit(evading(attack, score))(keys(), classifier, images, wrong)
  np.testing.assert_array_equal(resting.images, images)


def test_refilled_slots_keep_every_rows_beta(two_planes):
  classifier, score, images, labels, exact = two_planes
  attack = attacks.pgd(l2_ball(1.1 * exact), 0.03 * exact, 100, early_stop=True)
  guarded = evading(attack, score, jnp.linspace(0, 2, NUM))
  run = jax.jit(
    lambda num_slots: attacks.drive(
      guarded, keys(), classifier, images, labels, num_slots=num_slots
    ),
    static_argnums=0,
  )
  plain, slots = run(None), run(3)
  assert 0 < plain.success.sum() < NUM
  np.testing.assert_array_equal(plain.success, slots.success)
  np.testing.assert_allclose(plain.images, slots.images, atol=1e-6)


def test_joint_classifier_says_flagged_exactly_where_the_score_is_positive(
  trained,
):
  score = lambda images: 8 * (images.mean(axis=(1, 2, 3)) - 0.31)
  joint = joint_classifier(trained.classifier, score)
  logits = trained.classifier(trained.images)
  # All negative, where the formula without a shift would fail.
  negative = from_function(lambda images: trained.classifier(images) - 100)
  for network in joint, joint_classifier(negative, score):
    found = jnp.argmax(network(trained.images), axis=-1)
    flagged = score(trained.images) > 0
    assert 5 < flagged.sum() < 35
    np.testing.assert_array_equal(
      found, jnp.where(flagged, 4, jnp.argmax(logits, axis=-1))
    )
  shifted = logits - logits.min(axis=-1, keepdims=True)
  np.testing.assert_allclose(
    joint(trained.images)[:, 4],
    (score(trained.images) + 1) * shifted.max(axis=-1),
    rtol=1e-5,
  )


def test_targets_are_reached_unflagged_through_the_joint_classifier(two_planes):
  classifier, score, images, labels, exact = two_planes
  attack = attacks.pgd(
    l2_ball(2 * exact),
    0.05 * exact,
    100,
    targeted=True,
    early_stop=True,
  )
  result = jax.jit(attack)(
    keys(), joint_classifier(classifier, score), images, labels + 1
  )
  assert jnp.all(result.success)
  assert jnp.all(defeated(classifier, score, result.images, labels))


def test_bpda_walks_through_rounding(trained):
  rounded = lambda images: jnp.round(images * 8) / 8
  chain = lambda defence: from_function(
    lambda variables, images: trained.classifier.apply(
      variables, defence(images)
    ),
    trained.classifier.variables,
  )
  blocked, open_ = chain(rounded), chain(bpda(rounded))
  np.testing.assert_array_equal(blocked(trained.images), open_(trained.images))
  right = ~losses.succeeded(blocked(trained.images), trained.labels)
  attack = jax.jit(attacks.pgd(linf_ball(0.1), 0.02, 10, random_start=False))
  run = lambda classifier: attack(
    keys(40), classifier, trained.images, trained.labels
  )
  assert not jnp.any(run(blocked).success & right)
  result = run(open_)
  assert jnp.mean(result.success[right]) > 0.9
  judged = losses.succeeded(blocked(result.images), trained.labels)
  np.testing.assert_array_equal(judged, result.success)


def test_bpda_takes_the_gradient_of_the_stand_in_and_passes_keys(key):
  noisy = lambda images, key: jnp.sign(images) + jax.random.normal(key)
  through = bpda(noisy, backward=lambda images: images**2)
  images = jnp.array([1.0, -3.0])
  value, gradient = jax.value_and_grad(
    lambda images: through(images, key).sum()
  )(images)
  np.testing.assert_allclose(value, 2 * jax.random.normal(key), rtol=1e-6)
  np.testing.assert_allclose(gradient, 2 * images)


def noisy_linear(variables, images, keys):
  """Every call sees the picture through noise of its own."""
  noise = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys)
  seen = (images + noise) ** 2  # Not linear: the noise changes the gradient.
  return seen.reshape(len(images), -1) @ variables


def test_eot_converges_to_the_gradient_without_noise(key):
  weights = jax.random.normal(key, (16, 3))
  images = jax.random.uniform(jax.random.key(1), (NUM, *SHAPE))
  network = from_function(noisy_linear, weights, stochastic=True)

  def gradient(classifier):
    def first(images):
      return bound(classifier, keys(), 0)(images)[:, 0].sum()

    return jax.jit(jax.grad(first))(images)

  # The mean of (x + n)^2 is x^2 + 1, its gradient 2x.
  exact = 2 * images * weights[:, 0].reshape(SHAPE)
  error = [
    jnp.abs(gradient(eot(network, draws)) - exact).mean() for draws in (4, 64)
  ]
  # Four times as accurate with 16 times the draws.
  assert 3 < error[0] / error[1] < 5


def test_eot_has_fresh_draws_each_step_and_does_not_retrace(key):
  traced_once = chex.assert_max_traces(noisy_linear, n=1)
  images = jax.random.uniform(key, (NUM, *SHAPE))
  run = jax.jit(
    lambda classifier, turn: bound(classifier, keys(), turn)(images)
  )
  for weights in jnp.ones((16, 3)), jnp.zeros((16, 3)):
    network = eot(from_function(traced_once, weights, stochastic=True), 2)
    outputs = [run(network, turn) for turn in (0, 0, 1)]
    if weights.any():
      np.testing.assert_array_equal(outputs[0], outputs[1])
      assert jnp.abs(outputs[0] - outputs[2]).min() > 0


def test_misuse_is_explained(trained):
  with pytest.raises(UserError, match='not stochastic; attack it as it is'):
    eot(trained.classifier, 3)
  noisy = from_function(noisy_linear, jnp.ones((16, 3)), stochastic=True)
  with pytest.raises(UserError, match='num_draws is 0'):
    eot(noisy, 0)
  with pytest.raises(UserError, match='beta is -1'):
    evading(attacks.fgsm(0.1), lambda images: images, -1)
