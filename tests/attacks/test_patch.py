"""Patches and universal perturbations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, losses, norms
from jaxadv.attacks.patch import place_patch
from jaxadv.classifier import from_function
from jaxadv.errors import UserError
from jaxadv.types import picture_keys


def keys(num=40, seed=0):
  return picture_keys(jax.random.key(seed), jnp.arange(num))


def changed(result, images):
  return np.asarray(jnp.any(result.images != images, axis=-1))


def test_a_patch_is_fgsm_in_one_square(linear):
  attack = jax.jit(attacks.patch(0.05, 3, 1, 0.05, place=(1, 2)))
  given = keys(24), linear.classifier, linear.images, linear.labels
  found = attack(*given).images
  whole = attacks.fgsm(0.05)
  expected = np.array(linear.images)
  square = np.s_[:, 1:4, 2:5]
  expected[square] = jax.jit(whole)(*given).images[square]
  np.testing.assert_allclose(found, expected, atol=1e-7)
  outside = np.ones((6, 6), bool)
  outside[1:4, 2:5] = False
  np.testing.assert_array_equal(
    np.asarray(found)[:, outside], np.asarray(linear.images)[:, outside]
  )


def test_places_are_random_and_reach_every_border(trained):
  always = from_function(lambda images: images.mean(axis=(1, 2)))
  images = jnp.full((300, 5, 7, 3), 0.5).at[..., 0].add(0.4)
  attack = attacks.patch(0.1, 3, 1)
  result = jax.jit(attack)(keys(300), always, images, jnp.zeros(300, jnp.int32))
  moved = changed(result, images)
  rows, columns = moved.any(axis=2), moved.any(axis=1)
  assert (rows.sum(axis=1) == 3).all() and (columns.sum(axis=1) == 3).all()
  corners = set(
    zip(rows.argmax(1).tolist(), columns.argmax(1).tolist(), strict=True)
  )
  assert corners == {(row, column) for row in range(3) for column in range(5)}


def test_in_square_holds_any_attack_inside(trained):
  # A random start and steps of unit length in L2 leave the square alone.
  attack = attacks.pgd(norms.l2_ball(1.0), 0.3, 5)
  result = jax.jit(attacks.in_square(attack, 5, place=(0, 7)))(
    keys(), trained.classifier, trained.images, trained.labels
  )
  moved = changed(result, trained.images)
  assert moved[:, :5, 7:].any() and not moved[:, 5:].any()
  assert not moved[:, :, :7].any()


@pytest.mark.filterwarnings('ignore::jaxadv.errors.DoubtWarning')
def test_lavan_raises_the_target_over_its_strongest_rival(linear):
  # One step from a linear classifier: the sign of a difference of weights.
  targets = (linear.labels + 1) % 3
  attack = attacks.lavan(6, 1, 0.05, targeted=True)
  result = jax.jit(attack)(keys(24), linear.classifier, linear.images, targets)
  weights = linear.classifier.variables['weights'].T
  towards = jnp.sign(weights[targets] - weights[linear.labels])
  expected = linear.images + 0.05 * towards.reshape(linear.images.shape)
  np.testing.assert_allclose(result.images, expected, atol=1e-6)


def test_a_visible_patch_beats_one_inside_a_ball(trained):
  given = keys(), trained.classifier, trained.images, trained.labels
  small = jax.jit(attacks.patch(4 / 255, 4, 20))(*given)
  large = jax.jit(attacks.lavan(4, 20))(*given)
  right = ~losses.succeeded(trained.classifier(trained.images), trained.labels)
  assert large.success[right].mean() > 0.8 > small.success[right].mean()


def test_place_patch_copies_the_patch_as_it_is():
  patch = jax.random.uniform(jax.random.key(3), (6, 6, 3))
  images = jnp.full((50, 12, 12, 3), 0.5)
  # Half the side and no turn: placed between pixels, read bilinearly.
  half = functools.partial(place_patch, scales=(0.5, 0.5), max_angle=0.0)
  placed = jax.jit(half)(keys(50), images, patch)
  inside = np.asarray(jnp.any(placed != images, axis=-1))
  assert (inside.sum(axis=(1, 2)) == 36).all()
  np.testing.assert_allclose(
    [
      picture[mask].mean() for picture, mask in zip(placed, inside, strict=True)
    ],
    np.full(50, patch.mean()),
    atol=0.05,
  )
  white = attacks.apply_patch(jnp.ones((6, 6, 3)))
  never = from_function(lambda images: jnp.eye(3)[jnp.zeros(50, jnp.int32)])
  shown = white(keys(50), never, images, jnp.zeros(50, jnp.int32)).images
  assert shown.max() == 1
  np.testing.assert_allclose(jnp.where(shown > 0.5, 1, 0.5), shown, atol=1e-6)
  whole = place_patch(keys(50), images, images[0], scales=(1, 1), max_angle=0.0)
  np.testing.assert_allclose(whole, images, atol=1e-6)


def test_place_patch_keeps_size_and_turns():
  images = jnp.zeros((200, 40, 40, 1))
  patch = jnp.zeros((8, 8, 1)).at[:4].set(1.0).at[4:].set(0.5)
  scaled = functools.partial(place_patch, scales=(0.2, 0.6))
  placed = jax.jit(scaled)(keys(200), images, patch)
  area = jnp.sum(placed > 0, axis=(1, 2, 3)) / 1600
  assert 0.03 < area.min() < 0.06 and 0.3 < area.max() < 0.37
  # The bright half lies above the dark one, up to 20 degrees off.
  askew = functools.partial(place_patch, max_angle=20.0)
  turned = jax.jit(askew)(keys(200), images, patch)[..., 0]
  grid = jnp.stack(jnp.meshgrid(*[jnp.arange(40.0)] * 2, indexing='ij'))
  centre = lambda mask: (
    (grid * mask[:, None]).sum(axis=(2, 3)) / mask.sum(axis=(1, 2))[:, None]
  )
  down, right = (
    centre((turned > 0) & (turned < 0.75)) - centre(turned >= 0.75)
  ).T
  angle = jnp.rad2deg(jnp.arctan2(right, down))
  assert 15 < angle.max() < 23 and -23 < angle.min() < -15


@pytest.mark.parametrize('targeted', [False, True])
def test_a_trained_patch_fools_pictures_not_trained_on(trained, targeted):
  labels = trained.labels * (not targeted)
  options = {'scales': (0.3, 0.5), 'max_angle': 10.0}
  patch = attacks.train_patch(
    jax.random.key(0),
    trained.classifier,
    trained.images[:24],
    labels[:24],
    size=5,
    targeted=targeted,
    num_epochs=20,
    batch_size=12,
    **options,
  )
  assert patch.shape == (5, 5, 3)
  assert 0 <= patch.min() and patch.max() <= 1
  rest = trained.images[24:], labels[24:]
  rate = lambda patch: attacks.apply_patch(patch, targeted=targeted, **options)(
    keys(16, 5), trained.classifier, *rest
  ).success.mean()
  assert rate(patch) > max(0.6, rate(jnp.full_like(patch, 0.5)) + 0.2)


def test_a_universal_perturbation_fools_pictures_not_trained_on(trained):
  epsilon = 0.06
  delta = attacks.universal_perturbation(
    jax.random.key(0),
    trained.classifier,
    trained.images[:24],
    trained.labels[:24],
    norms.linf_ball(epsilon),
    step_size=epsilon / 5,
    num_epochs=10,
    batch_size=12,
  )
  assert delta.shape == (12, 12, 3)
  assert 0.99 * epsilon < jnp.abs(delta).max() <= epsilon
  rest = keys(16), trained.classifier, trained.images[24:], trained.labels[24:]
  rate = lambda delta: attacks.apply_delta(delta)(*rest).success.mean()
  noise = epsilon * jax.random.rademacher(jax.random.key(1), delta.shape)
  assert rate(delta) > max(0.6, rate(noise) + 0.2)


def test_one_perturbation_for_all_is_exact_where_classes_are_planes(key):
  # Two classes, linear: the best universal perturbation moves all pictures
  # of class 0 straight across. uint8 pictures are trained on as they are.
  weights = jax.random.normal(key, (16,))
  classifier = from_function(
    lambda images: jnp.stack(
      [jnp.zeros(len(images)), images.reshape(len(images), -1) @ weights], -1
    )
  )
  images = np.full((6, 4, 4, 1), 128, np.uint8)
  delta = attacks.universal_perturbation(
    key,
    classifier,
    images,
    np.zeros(6, int),
    norms.l2_ball(0.3),
    step_size=0.05,
    batch_size=3,
  )
  expected = 0.3 * weights / jnp.linalg.norm(weights)
  np.testing.assert_allclose(delta.ravel(), expected, atol=1e-5)


def test_easy_pictures_do_not_decide_the_direction(key):
  # Two pictures that are fooled by far pull one way, one that is not the
  # other way; without the bound on the loss the two would win.
  def logits(images):
    across = images[:, 0, 0, 0] - 0.5
    steep = jnp.where(images[:, 1, 0, 0] > 0.7, 1000.0, -10.0)
    lead = jnp.where(images[:, 1, 0, 0] > 0.7, 60.0, -0.5)
    return jnp.stack([jnp.zeros(len(images)), steep * across + lead], -1)

  images = jnp.full((3, 2, 1, 1), 0.5).at[:2, 1].set(1.0)
  train = lambda **options: attacks.universal_perturbation(
    key,
    from_function(logits),
    images,
    jnp.zeros(3, jnp.int32),
    norms.linf_ball(0.05),
    step_size=0.01,
    **options,
  )[0, 0, 0]
  assert train() == pytest.approx(-0.05)
  assert train(largest_loss=1e6) == pytest.approx(0.05)


def test_training_gives_a_stochastic_classifier_fresh_draws(key):
  seen = []

  def noisy(images, keys):
    jax.debug.callback(
      lambda draws: seen.extend(draws.tolist()),
      jax.vmap(jax.random.uniform)(keys),
    )
    return images.mean(axis=(1, 2))

  delta = attacks.universal_perturbation(
    key,
    from_function(noisy, stochastic=True),
    jnp.full((6, 2, 2, 3), 0.5),
    jnp.zeros(6, jnp.int32),
    norms.linf_ball(0.1),
    step_size=0.05,
    num_epochs=3,
    batch_size=2,
  )
  jax.block_until_ready(delta)
  jax.effects_barrier()
  # Before them stand those that the classifier was tried with.
  assert len(set(seen[-18:])) == 18


@pytest.mark.parametrize(
  ('build', 'words'),
  [
    (lambda: attacks.patch(8, 4), 'epsilon is 8 '),
    (lambda: attacks.patch(0.1, 0), 'size is 0 '),
    (lambda: attacks.lavan(4, 0), 'num_steps is 0 '),
  ],
)
def test_wrong_hyperparameters_are_named(build, words):
  with pytest.raises(UserError, match=words):
    build()


def test_misuse_is_explained(trained):
  given = keys(), trained.classifier, trained.images, trained.labels
  with pytest.raises(UserError, match='size is 13 but must be at most 12'):
    attacks.patch(0.1, 13)(*given)
  with pytest.raises(UserError, match=r'place is 9 but must lie in \[0, 8\]'):
    attacks.lavan(4, place=(2, 9))(*given)
  with pytest.raises(UserError, match='scales is 0 '):
    attacks.apply_patch(jnp.zeros((2, 2, 3)), scales=(0, 1))(*given)
  train = lambda **options: attacks.train_patch(
    jax.random.key(0),
    trained.classifier,
    trained.images,
    trained.labels[: options.pop('num', 40)],
    **{'size': 4} | options,
  )
  for options, words in (
    ({'num': 3}, r'labels are int32\[3\]'),
    ({'num_epochs': 0}, 'num_epochs is 0'),
    ({'learning_rate': 0}, 'learning_rate is 0'),
  ):
    with pytest.raises(UserError, match=words):
      train(**options)
