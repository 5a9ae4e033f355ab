"""The rectifier on a linear detector, whose gradient is known."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, losses
from jaxadv.classifier import Normalise, from_function
from jaxadv.defences import rectifier
from jaxadv.defences.rectifier import (
  Held,
  fine_tune,
  guarded,
  mask_pixels,
  masked_copies,
  random_pixels,
  rectified,
  salient_pixels,
  share,
  zeroed,
)
from jaxadv.errors import UserError
from jaxadv.norms import linf_ball
from jaxadv.training import TrainConfig
from jaxadv.types import picture_keys

NUM, SIDE = 6, 8
SHAPE = (SIDE, SIDE, 3)
WEIGHTS = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
IMAGES = (
  np.random.default_rng(1).uniform(0.1, 0.9, (NUM, *SHAPE)).astype(np.float32)
)
# Summed over the channels, as the suspects are.
SIZE = np.abs(WEIGHTS).sum(-1)
KEYS = picture_keys(jax.random.key(2), jnp.arange(NUM))


def score(images):
  """Its loss is saturated to 0 in float32, its gradient is not."""
  return jnp.sum(images * WEIGHTS, axis=(1, 2, 3)) + 1000


def network(variables, images):
  return images.reshape(len(images), -1) @ variables


LINEAR = from_function(
  network, jax.random.normal(jax.random.key(3), (SIDE * SIDE * 3, 4))
)
find = jax.jit(
  lambda alpha, mask: salient_pixels(score, IMAGES, alpha, mask_rule=mask),
  static_argnames='mask',
)
mask = jax.jit(mask_pixels, static_argnames='probability')


@pytest.mark.parametrize('alpha', [0.0, 0.3, 0.8, 1.0])
def test_suspects_are_those_of_the_formula(alpha):
  wanted = SIZE > alpha * (SIZE.max() - SIZE.min()) + SIZE.min()
  found = find(np.float32(alpha), 'threshold')
  np.testing.assert_array_equal(found, np.broadcast_to(wanted, found.shape))


@pytest.mark.parametrize('alpha', [0.0, 0.1, 0.55, 1.0])
def test_a_fraction_is_that_of_the_largest_gradients(alpha):
  found = np.asarray(find(np.float32(alpha), 'fraction'))
  wanted = round(alpha * SIDE**2)
  assert (found.sum((1, 2)) == wanted).all()
  if 0 < wanted < SIDE**2:
    assert SIZE[found[0]].min() > SIZE[~found[0]].max()


def test_alpha_of_each_row_and_ties():
  flat = lambda images: jnp.sum(images, axis=(1, 2, 3))
  alpha = np.arange(NUM, dtype=np.float32) / 8
  found = jax.jit(
    lambda alpha: salient_pixels(flat, IMAGES, alpha, mask_rule='fraction')
  )(alpha)
  # All gradients are equal: exactly so many all the same, the first.
  first = np.arange(SIDE**2).reshape(SIDE, SIDE) < 8 * np.arange(NUM).reshape(
    -1, 1, 1
  )
  np.testing.assert_array_equal(found, first)


def test_random_pixels_are_as_many_and_spread_evenly():
  many = picture_keys(jax.random.key(0), jnp.arange(2000))
  found = np.asarray(
    jax.jit(lambda keys: random_pixels(keys, jnp.zeros((2000, *SHAPE)), 0.25))(
      many
    )
  )
  assert (found.sum((1, 2)) == 16).all()
  # Four standard deviations of a proportion, and of the largest of 64.
  assert np.abs(found.mean(0) - 0.25).max() < 4.5 * np.sqrt(0.25 * 0.75 / 2000)
  black = zeroed(IMAGES, found[:NUM])
  assert not black[found[:NUM]].any()
  np.testing.assert_array_equal(black[~found[:NUM]], IMAGES[~found[:NUM]])


def test_masking_replaces_suspects_only_by_levels_of_8_bit():
  found = find(0.5, 'fraction')
  images, replaced = jax.tree.map(np.asarray, mask(KEYS, IMAGES, found))
  assert not (replaced & ~found).any()
  assert 0.15 < share(replaced).mean() < 0.35
  np.testing.assert_array_equal(images[~replaced], IMAGES[~replaced])
  new = images[replaced]
  np.testing.assert_array_equal(
    new, np.round(new * 255).astype(np.float32) * np.float32(1 / 255)
  )
  assert (new != IMAGES[replaced]).mean() > 0.9
  none = mask(KEYS, IMAGES, found, probability=0.0)
  np.testing.assert_array_equal(none.images, IMAGES)
  full = mask(KEYS, IMAGES, found, probability=1.0)
  np.testing.assert_array_equal(full.replaced, found)


def test_noise_has_mean_and_deviation_of_the_picture():
  rng = np.random.default_rng(4)
  means, spreads = np.array([0.3, 0.5, 0.6]), np.array([0.02, 0.1, 0.05])
  images = rng.normal(
    means[:, None, None, None], spreads[:, None, None, None], (3, 100, 100, 3)
  )
  everywhere = np.ones((3, 100, 100), bool)
  found = mask(
    KEYS[:3], images.astype(np.float32), everywhere, probability=1.0
  ).images
  np.testing.assert_allclose(found.mean((1, 2, 3)), means, atol=5e-3)
  np.testing.assert_allclose(found.std((1, 2, 3)), spreads, rtol=0.03)
  # A draw for each channel.
  grey = np.corrcoef(found[1].reshape(-1, 3).T)[0, 1]
  assert abs(grey) < 0.05


def test_masks_are_clipped_to_the_box():
  images = jnp.where(jnp.arange(SIDE)[:, None, None] < 4, 0.0, 1.0)
  images = jnp.broadcast_to(images, (NUM, *SHAPE))
  found = mask(KEYS, images, np.ones((NUM, SIDE, SIDE), bool)).images
  assert found.min() == 0 and found.max() == 1


def test_a_row_does_not_depend_on_its_batch():
  found = find(0.5, 'fraction')
  whole = mask(KEYS, IMAGES, found)
  part = mask(KEYS[2:3], IMAGES[2:3], found[2:3])
  np.testing.assert_array_equal(whole.images[2:3], part.images)
  other = mask(KEYS[:1], IMAGES[2:3], found[2:3])
  assert (other.replaced != part.replaced).any()


def test_the_gradient_passes_replaced_pixels_and_draws_are_averaged():
  first = lambda net, images: net(images, KEYS)[:, 0].sum()
  one, three = (
    rectified(LINEAR, score, 0.5, mask_rule='fraction', num_draws=draws)
    for draws in (1, 3)
  )
  gradient = jax.jit(jax.grad(first, argnums=1))(three, IMAGES)
  wanted = np.asarray(LINEAR.variables)[:, 0].reshape(SHAPE)
  np.testing.assert_allclose(
    gradient, np.broadcast_to(wanted, IMAGES.shape), rtol=1e-5
  )
  found = find(0.5, 'fraction')
  draws = [
    LINEAR(
      mask(
        jax.vmap(jax.random.fold_in, in_axes=(0, None))(KEYS, turn),
        IMAGES,
        found,
      ).images
    )
    for turn in range(3)
  ]
  call = jax.jit(lambda net: net(IMAGES, KEYS))
  np.testing.assert_allclose(call(one), draws[0], rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    call(three), np.mean(draws, axis=0), rtol=1e-4, atol=1e-4
  )
  assert np.abs(draws[0] - LINEAR(IMAGES)).min() > 1e-3
  votes = call(
    rectified(
      LINEAR, score, 0.5, mask_rule='fraction', num_draws=3, combine='vote'
    )
  )
  counted = sum(jax.nn.one_hot(d.argmax(-1), 4) for d in draws)
  sure = np.mean([jax.nn.softmax(d) for d in draws], axis=0)
  np.testing.assert_allclose(votes, counted + sure / 2, atol=1e-4)


def test_the_pipeline_repairs_what_is_flagged():
  flags = jnp.asarray([1.0, -1.0] * (NUM // 2))
  bright = lambda images: jnp.mean(images, axis=(1, 2, 3)) - 1.5
  images = IMAGES + 2 * (flags > 0)[:, None, None, None]
  black = from_function(
    lambda images, keys: jnp.zeros((len(images), 4)), stochastic=True
  )
  chain = guarded(LINEAR, black, bright)
  found = jax.jit(lambda chain: chain(images, KEYS))(chain)
  assert not found[::2].any()
  np.testing.assert_allclose(found[1::2], LINEAR(images)[1::2], rtol=1e-5)


def test_the_pipeline_can_be_attacked():
  labels = LINEAR(IMAGES).argmax(-1)
  repaired = lambda **options: rectified(LINEAR, score, 0.7, **options)
  chain = guarded(LINEAR, repaired(), score)
  attack = jax.jit(attacks.pgd(linf_ball(0.2), 0.05, 5))
  attacked = attack(KEYS, attacks.eot(chain, 2), IMAGES, labels).images
  judge = guarded(LINEAR, repaired(num_draws=10, combine='vote'), score)
  right = jax.jit(lambda images: judge(images, KEYS).argmax(-1) == labels)
  assert right(IMAGES).mean() > 0.6
  assert right(attacked).mean() < 0.2


class Net(nn.Module):
  """Linear, as the classifiers above are."""

  @nn.compact
  def __call__(self, x, train=False):
    x = x.reshape(len(x), -1)
    return nn.Dense(2)(x)


def test_fine_tuning_is_one_step_on_masked_and_clean_alike():
  rng = np.random.default_rng(5)
  masked = rng.integers(0, 256, (2, 4, *SHAPE)).astype(np.uint8)
  labels = np.array([0, 1, 1, 0], np.int32)
  clean = rng.integers(0, 256, (2, *SHAPE)).astype(np.uint8)
  clean_labels = np.array([1, 0], np.int32)
  net, scale = Net(), Normalise((0.5,), (0.3,))
  start = net.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
  found = fine_tune(
    jax.random.key(1),
    net,
    start,
    masked,
    labels,
    clean,
    clean_labels,
    TrainConfig(1, 16, 'sgd', 0.1, 'constant'),
    preprocess=scale,
  )

  def mean(variables, images, labels):
    logits = net.apply(variables, scale(images.astype(np.float32) / 255))
    return losses.cross_entropy(logits, labels).mean()

  def loss(variables):
    return (
      mean(variables, masked[0], labels)
      + mean(variables, masked[1], labels)
      + 2 * mean(variables, clean, clean_labels)
    ) / 4

  gradient = jax.jit(jax.grad(loss))(start)
  wanted = jax.tree.map(lambda leaf, g: leaf - 0.1 * g, start, gradient)
  chex.assert_trees_all_close(found, wanted, rtol=1e-4, atol=1e-6)
  moved = lambda leaf, other: np.abs(leaf - other).max() > 1e-3
  assert jax.tree.all(jax.tree.map(moved, wanted, start))


def test_validation_pictures_pick_the_epoch():
  rng = np.random.default_rng(6)
  images = rng.integers(0, 256, (8, *SHAPE)).astype(np.uint8)
  ones = np.ones(8, np.int32)
  net = Net()
  start = net.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
  start = jax.tree.map(jnp.zeros_like, start)
  start['params']['Dense_0']['bias'] = jnp.array([1.0, 0.0])

  def classes(held=None):
    # All that it learns from is of class 1, which the bias comes to say.
    found = fine_tune(
      jax.random.key(1),
      net,
      start,
      images[None],
      ones,
      images,
      ones,
      TrainConfig(12, 16, 'sgd', 0.003, 'constant'),
      held=held,
    )
    return net.apply(found, images / np.float32(255)).argmax(-1)

  assert classes().all()
  held = Held(images, ones, images, 0 * ones, 0.95)
  assert not classes(held).any()


def test_an_epoch_has_to_keep_clean_pictures_before_it_recovers_others():
  metric = rectifier._selection_metric(2, 0.5)
  judged = [
    float(metric({'accuracy': jnp.array(accuracy)}))
    for accuracy in (
      [1.0, 1.0, 0.0, 0.0, 0.0, 1.0],
      [0.0, 0.0, 0.0, 0.0, 1.0, 0.0],
      [0.0, 0.0, 1.0, 1.0, 0.0, 0.0],
      [0.0, 1.0, 1.0, 0.0, 0.0, 1.0],
    )
  ]
  assert judged == [0.25, 0.25, 1.0, 1.5]


def test_copies_are_those_of_single_calls_whatever_the_batch():
  stored = np.round(IMAGES * 255).astype(np.uint8)
  make = lambda batch_size: masked_copies(
    jax.random.key(6),
    score,
    stored,
    0.25,
    mask_rule='fraction',
    num_copies=3,
    batch_size=batch_size,
  )
  whole, parts = make(6), make(4)
  for one, other in zip(whole, parts, strict=True):
    np.testing.assert_array_equal(one, other)
  np.testing.assert_allclose(whole.suspect, 0.25)
  changed = (whole.images != stored).any(-1).mean((2, 3))
  np.testing.assert_allclose(changed, whole.replaced, atol=2 / SIDE**2)
  assert (whole.images[0] != whole.images[1]).any()
  assert 0.05 < whole.replaced.mean() < 0.2


def test_mistakes_are_explained():
  with pytest.raises(UserError, match='alpha is 1.5'):
    salient_pixels(score, IMAGES, 1.5)
  with pytest.raises(UserError, match='must be one of threshold, fraction'):
    rectified(LINEAR, score, 0.5, mask_rule='share')
  with pytest.raises(UserError, match='must be one of mean, vote'):
    rectified(LINEAR, score, 0.5, combine='sum')
  with pytest.raises(UserError, match='num_draws is 0'):
    rectified(LINEAR, score, 0.5, num_draws=0)
  with pytest.raises(UserError, match='give a label a picture'):
    empty = np.zeros((1, 2, *SHAPE), np.uint8)
    fine_tune(KEYS[0], Net(), {}, empty, [0], empty[0], [0, 0])
