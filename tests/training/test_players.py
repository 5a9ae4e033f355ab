"""Several players in one training: a GAN of a Gaussian, and joint training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.errors import DataError, UserError
from jaxadv.training import (
  Group,
  Task,
  TrainConfig,
  alternate,
  data_mesh,
  fit,
  fit_members,
)
from tests.training.nets import assert_close

KEY = jax.random.key(2)
MEANS = np.float32([1.5, -2.0])
ROWS = np.arange(192)
TRAIN, VALID = ROWS[:160], ROWS[160:]
PLAYERS = ('discriminator', 'generator')
CONFIG = TrainConfig(
  num_epochs=60,
  batch_size=32,
  optimizer='sgd',
  learning_rate=0.1,
  schedule='constant',
  groups=(Group('generator', 2.0),),
)


def make_data():
  """Numbers of two Gaussians with unit spread, a row for each member."""
  noise = np.random.default_rng(0).normal(size=len(ROWS))
  return (MEANS[:, None] + noise - noise[TRAIN].mean()).astype(np.float32)


def logits_of(discriminator, x):
  return discriminator['slope'] * x + discriminator['offset']


def tells_apart(params, stats, real, mask, key):
  """The loss of the discriminator; decay keeps the game from going round."""
  fake = params['generator'] + jax.random.normal(key, real.shape, jnp.float32)
  own = params['discriminator']
  losses = jax.nn.softplus(-logits_of(own, real))
  losses += jax.nn.softplus(logits_of(own, fake))
  return losses + 0.1 * own['slope'] ** 2, stats


def deceives(params, stats, real, mask, key):
  fake = params['generator'] + jax.random.normal(key, real.shape, jnp.float32)
  return jax.nn.softplus(-logits_of(params['discriminator'], fake)), stats


TASK = Task(
  init=lambda key, data, member: {
    'params': {
      'discriminator': {'slope': jnp.zeros(()), 'offset': jnp.zeros(())},
      'generator': jnp.zeros(()),
    }
  },
  gather=lambda data, indices, member, key: data[member, indices],
  update=alternate(discriminator=tells_apart, generator=deceives),
  measure=lambda params, stats, real: {
    'loss': jnp.abs(params['generator'] - real)
  },
  players=PLAYERS,
)


def train(**options):
  return fit(KEY, TASK, make_data(), TRAIN, None, CONFIG, **options)


@pytest.fixture(scope='module')
def trained():
  return train()


def test_the_generator_learns_the_mean(trained):
  assert trained.state.params['generator'] == pytest.approx(MEANS[0], abs=0.2)
  # Nobody can tell them apart then: twice the logarithm of 2, and once.
  last = {name: trained.history[f'train_{name}'][-1] for name in PLAYERS}
  assert last['discriminator'] == pytest.approx(2 * np.log(2), abs=0.05)
  assert last['generator'] == pytest.approx(np.log(2), abs=0.1)


def test_members_play_side_by_side():
  keys = jax.random.split(KEY, 2)
  run = lambda mode: fit_members(
    keys, TASK, make_data(), TRAIN, VALID, CONFIG, member_mode=mode
  )
  found = run('vmap')
  np.testing.assert_allclose(found.state.params['generator'], MEANS, atol=0.2)
  assert_close(found.state, run('map').state, rtol=1e-3, atol=1e-4)
  # That of a fixed Gaussian falls to the mean deviation, 0.8.
  assert (found.history['valid_loss'][-1] < 1).all()


def test_two_steps_by_hand():
  """The second player sees what the first has just done."""
  config = dataclasses.replace(CONFIG, num_epochs=1, batch_size=2)
  found = fit(
    KEY, HANDS, np.float32([1.0, 1.0]), np.arange(2), None, config
  ).state.params
  # a: 1 - 0.1 * 2 * (1 - 0), b: 0 - 0.2 * a with the rate of its group.
  assert found['a'] == pytest.approx(0.8)
  assert found['generator'] == pytest.approx(-0.2 * 0.8)


HANDS = Task(
  init=lambda key, data, member: {
    'params': {'a': jnp.ones(()), 'generator': jnp.zeros(())}
  },
  gather=lambda data, indices, member, key: data[indices],
  update=alternate(
    a=lambda params, stats, rows, mask, key: (
      rows * (params['a'] - params['generator']) ** 2,
      stats,
    ),
    generator=lambda params, stats, rows, mask, key: (
      rows * params['a'] * params['generator'],
      stats,
    ),
  ),
  measure=lambda params, stats, rows: {'loss': rows},
  players=('a', 'generator'),
)


def test_resumed_in_the_middle_equals_undisturbed(trained, tmp_path):
  class Stop(Exception):
    pass

  def stop(done, of, row):
    if done == 31:
      raise Stop

  with pytest.raises(Stop):
    train(checkpoint_dir=tmp_path, progress=stop)
  done = []
  resumed = train(
    checkpoint_dir=tmp_path, progress=lambda epoch, of, row: done.append(epoch)
  )
  assert done == list(range(31, 61))
  assert_close(resumed.state, trained.state, rtol=0, atol=0)
  for name, values in trained.history.items():
    np.testing.assert_array_equal(resumed.history[name], values)


def test_split_over_devices_equals_one_device(trained):
  if jax.device_count() < 2:
    pytest.skip('needs 2 devices')
  mesh = data_mesh(jax.devices()[:2])
  split = train(mesh=mesh)
  assert split.state.step.sharding.device_set == set(mesh.devices.flat)
  assert_close(split.state, trained.state, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('player', PLAYERS)
def test_a_loss_that_is_not_finite_names_the_player(player):
  losses = {'discriminator': tells_apart, 'generator': deceives}

  def broken(*given):
    # Its gradient is finite, so that the other player goes on well.
    found, stats = losses[player](*given)
    return found + jnp.inf, stats

  task = TASK._replace(update=alternate(**losses | {player: broken}))
  with pytest.raises(DataError, match=f'train_{player} is not finite in epoch'):
    fit(KEY, task, make_data(), TRAIN, None, CONFIG)


def test_players_and_parameters_belong_together():
  task = TASK._replace(players=('generator', 'critic'))
  with pytest.raises(UserError, match='critic but the parameters are those of'):
    fit(KEY, task, make_data(), TRAIN, None, CONFIG)


def test_an_update_of_ones_own_trains_two_networks_jointly():
  """One optimizer, two losses, two steps a batch; a scalar loss is a mean."""

  def update(state, rows, mask, key, apply_gradients):
    def total(params):
      return (params['a'] - rows.mean()) ** 2 + (params['b'] - params['a']) ** 2

    for _ in range(2):
      loss, gradients = jax.value_and_grad(total)(state.params)
      state = apply_gradients(state, gradients)
    return state, {'joint': loss, 'rows': rows}

  task = HANDS._replace(
    init=lambda key, data, member: {
      'params': {'a': jnp.zeros(()), 'b': jnp.zeros(())}
    },
    update=update,
    players=(),
  )
  config = TrainConfig(1, 4, 'sgd', 0.25, 'constant')
  found = fit(KEY, task, np.ones(4), np.arange(4), None, config)
  # By hand: (0, 0), (1/2, 0), (1/2, 1/4).
  assert found.state.params == {'a': 0.5, 'b': 0.25}
  assert found.state.step == 1
  assert found.history['train_joint'] == pytest.approx(0.5)
  assert found.history['train_rows'] == pytest.approx(1.0)
