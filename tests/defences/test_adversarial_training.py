"""Adversarial training against hand computation, and what it is for."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import attacks, losses
from jaxadv.classifier import Normalise, from_function, from_linen
from jaxadv.defences import adversarial_training
from jaxadv.defences.adversarial_training import (
  RECIPES,
  Phase,
  Recipe,
  attacked_batches,
  fit_adversarial,
  moving_all,
)
from jaxadv.errors import UserError
from jaxadv.norms import l2, linf, linf_ball
from jaxadv.storage import fingerprint
from jaxadv.training import TrainConfig, data_mesh
from jaxadv.training.classifiers import fit_classifier
from jaxadv.types import picture_keys

EPSILON = 0.06
SIZE = 6  # Too small to be shifted at random.
PREPROCESS = Normalise((0.5,) * 3, (0.2,) * 3)
DESCENT = TrainConfig(
  num_epochs=3,
  batch_size=16,
  optimizer='add_decayed_weights:weight_decay=1e-2,sgd:momentum=0.9',
  learning_rate=0.1,
  schedule='constant',
)


class Net(nn.Module):
  """Small, with BatchNorm, so that modes of training and inference differ."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(8, (3, 3), strides=2, use_bias=False)(x)
    x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
    return nn.Dense(3)(nn.relu(x).reshape(len(x), -1))


def pictures(seed, num):
  """Three classes; uint8 and int32.

  The channel of the class is lit so faintly that an attack can undo it; which
  stripe is brighter is plain to see, but wrong in a tenth of the pictures.
  """
  rng = np.random.default_rng(seed)
  rows, labels = np.arange(num), rng.integers(0, 3, num).astype(np.int32)
  stripes = np.where(rng.random(num) < 0.85, labels, rng.integers(0, 3, num))
  images = rng.integers(90, 151, (num, SIZE, SIZE, 3))
  images[rows, ..., labels] += 12
  images[rows, 2 * stripes] += 60
  return images.astype(np.uint8), labels


def train(images, labels, config=DESCENT, **options):
  return fit_classifier(
    jax.random.key(0),
    Net(),
    images,
    labels,
    config,
    preprocess=PREPROCESS,
    flip=False,
    **options,
  )


def test_ddn_training_equals_steps_taken_by_hand():
  images, labels = pictures(0, 16)
  net, max_norm = Net(), 0.3
  start = jax.jit(net.init)(jax.random.key(3), jnp.zeros((1, SIZE, SIZE, 3)))
  # Rounding to 8 bit would enlarge the rounding of floats.
  ddn = attacks.ddn(10, levels=None)
  attack = jax.jit(ddn)
  clean = jnp.asarray(images, jnp.float32) / 255
  optimizer = optax.chain(
    optax.add_decayed_weights(
      1e-2, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    ),
    optax.sgd(0.1, momentum=0.9),
  )

  @jax.jit
  def step(variables, state, attacked):
    def loss(params):
      logits, changed = net.apply(
        variables | {'params': params},
        PREPROCESS(attacked),
        train=True,
        mutable=['batch_stats'],
      )
      return losses.cross_entropy(logits, labels).mean(), changed

    gradient, changed = jax.grad(loss, has_aux=True)(variables['params'])
    updates, state = optimizer.update(gradient, state, variables['params'])
    params = optax.apply_updates(variables['params'], updates)
    return {'params': params} | changed, state

  variables, state = start, optimizer.init(start['params'])
  for _ in range(DESCENT.num_epochs):
    classifier = from_linen(net, variables, preprocess=PREPROCESS)
    keys = jax.random.split(jax.random.key(1), len(labels))
    delta = attack(keys, classifier, clean, labels).images - clean
    length = np.linalg.norm(np.reshape(delta, (16, -1)), axis=1)
    assert (length > 2 * max_norm).any()
    scale = np.minimum(1, max_norm / np.maximum(length, 1e-12))
    attacked = clean + delta * scale[:, None, None, None]
    variables, state = step(variables, state, attacked)

  perturb = attacked_batches(ddn, max_norm=max_norm)
  found = train(images, labels, perturb=perturb, start=start)
  natural = train(images, labels, start=start)
  chex.assert_trees_all_close(found, variables, rtol=1e-3, atol=1e-5)
  moved = lambda leaf, other: np.abs(leaf - other).max() > 1e-3
  assert jax.tree.all(jax.tree.map(moved, variables, natural))


def test_pgd_training_raises_robust_accuracy():
  images, labels = pictures(1, 256)
  config = TrainConfig(20, 32, learning_rate=1e-2, schedule='constant')
  hyper = (('epsilon', EPSILON), ('step_size', 0.03), ('num_steps', 5))
  judge = jax.jit(attacks.pgd(linf_ball(EPSILON), 0.02, 10))
  test, true = pictures(2, 128)
  keys = picture_keys(jax.random.key(4), jnp.arange(128))

  def robust(attacked):
    phases = (Phase(config, attacked),)
    variables = fit_adversarial(
      jax.random.key(0),
      Net(),
      images,
      labels,
      Recipe(phases, 'pgd', hyper, move_all=True),
      preprocess=PREPROCESS,
      flip=False,
    )
    classifier = from_linen(Net(), variables, preprocess=PREPROCESS)
    return 1 - judge(keys, classifier, test / np.float32(255), true)[1].mean()

  before, after = robust(attacked=False), robust(attacked=True)
  assert after > before + 0.15, (before, after)


@pytest.mark.slow
def test_it_is_the_same_on_many_devices_and_after_an_interruption(tmp_path):
  images, labels = pictures(0, 16)
  phase = Phase(dataclasses.replace(DESCENT, num_epochs=2))

  def run(num_phases=2, **options):
    return fit_adversarial(
      jax.random.key(0),
      Net(),
      images,
      labels,
      Recipe((phase,) * num_phases, 'pgd', (('num_steps', 3),)),
      preprocess=PREPROCESS,
      flip=False,
      **options,
    )

  whole = run()
  first = run(1, checkpoint_dir=tmp_path)
  split = run(1, mesh=data_mesh())
  resumed = run(2, checkpoint_dir=tmp_path)
  chex.assert_trees_all_close(first, split, rtol=1e-3, atol=1e-4)
  chex.assert_trees_all_equal(whole, resumed)
  moved = lambda leaf, other: np.any(leaf != other)
  assert jax.tree.all(jax.tree.map(moved, first, whole))


def test_moving_all_moves_what_the_attack_would_leave(trained):
  images, labels = trained.images, trained.labels
  attack = attacks.pgd(linf_ball(0.02), 0.01, 3)
  keys = picture_keys(jax.random.key(0), jnp.arange(len(labels)))
  run = lambda attack: (
    jax.jit(attack)(keys, trained.classifier, images, labels).images
  )
  usual, all_moved = run(attack), run(moving_all(attack))
  wrong = losses.succeeded(trained.classifier(images), labels)
  assert wrong.any()
  np.testing.assert_array_equal(linf(usual - images) == 0, wrong)
  assert linf(all_moved - images).min() > 0
  assert linf(all_moved - images).max() < 0.02 + 1e-6
  np.testing.assert_array_equal(usual[~wrong], all_moved[~wrong])


def test_changes_are_cut_to_the_largest_norm(trained):
  images, labels = trained.images, trained.labels
  run = lambda **options: jax.jit(
    attacked_batches(attacks.fgsm(0.05), **options)
  )(jax.random.key(0), trained.classifier, images, labels)
  free, cut = run(), run(max_norm=0.5)
  assert l2(free - images).max() > 0.9
  np.testing.assert_allclose(
    l2(cut - images), jnp.minimum(l2(free - images), 0.5), rtol=1e-5
  )
  with pytest.raises(UserError, match='epsilon is -1'):
    attacked_batches(attacks.fgsm(0.05), max_norm=-1)


def test_a_phase_has_a_share_of_the_radius():
  images, labels = pictures(0, 4)
  images = images / np.float32(255)
  classifier = from_function(lambda images: images.sum((1, 2)))

  def longest(attack, hyper, share, **options):
    phases = (Phase(DESCENT, share=share),)
    recipe = Recipe(phases, attack, hyper, **options)
    perturb = adversarial_training.perturb_of(recipe, recipe.phases[0])
    changed = jax.jit(perturb)(jax.random.key(0), classifier, images, labels)
    return changed - images

  delta = longest('fgsm', (('epsilon', 0.05),), 0.5)
  np.testing.assert_allclose(linf(delta).max(), 0.025, rtol=1e-4)
  delta = longest('fgsm', (('epsilon', 0.05),), 0.5, max_norm=0.4)
  np.testing.assert_allclose(l2(delta).max(), 0.2, rtol=1e-4)


@pytest.mark.parametrize(
  'name, pictures, num_steps, num_attacked',
  [
    ('pgd_mnist', 60_000, 100_000, 84),
    ('pgd_cifar10', 50_000, 80_000, 204),
    ('ddn_mnist', 60_000, None, 50),
    ('ddn_cifar10', 50_000, None, 30),
  ],
)
def test_recipes_are_as_long_as_published(
  name, pictures, num_steps, num_attacked
):
  recipe = RECIPES[name]
  attacked = [phase.config for phase in recipe.phases if phase.attacked]
  assert sum(config.num_epochs for config in attacked) == num_attacked
  if num_steps:
    steps = num_attacked * pictures / attacked[0].batch_size
    assert abs(steps / num_steps - 1) < 0.01
  attacks.make(recipe.attack, **dict(recipe.hyper))
  assert len({fingerprint(other) for other in RECIPES.values()}) == 4
