"""The training loop against hand computation, and its promises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.errors import DataError, UserError, explain_out_of_memory
from jaxadv.training import (
  Task,
  TrainConfig,
  data_mesh,
  fit,
  fit_members,
  measure_members,
  minimise,
  take_member,
)
from tests.training.nets import (
  CONFIG,
  TASK,
  TRAIN,
  VALID,
  assert_close,
  make_data,
)

KEYS = jax.random.split(jax.random.key(5), 3)
PLAIN = TrainConfig(
  num_epochs=3,
  batch_size=4,
  optimizer='sgd',
  learning_rate=0.1,
  schedule='constant',
)


@pytest.fixture(scope='module')
def data():
  return make_data()


@pytest.fixture(scope='module')
def three(data):
  return fit_members(KEYS, TASK, data, TRAIN, VALID, CONFIG, member_mode='map')


def row_task(loss, start):
  """A task on rows of numbers whose `params` is one array."""
  return Task(
    init=lambda key, data, member: {'params': start},
    gather=lambda data, indices, member, key: data[indices],
    update=minimise(
      lambda params, stats, rows, mask, key: (loss(params, rows), stats)
    ),
    measure=lambda params, stats, rows: {'loss': loss(params, rows)},
  )


@pytest.mark.parametrize('batch_size', [5, 8])
@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_whole_batch_descent_equals_hand_computation(batch_size, momentum):
  rows = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
  # 2 axes, so that weight decay applies.
  task = row_task(
    lambda w, xy: 0.5 * (w[0, 0] * xy[:, 0] - xy[:, 1]) ** 2,
    jnp.ones((1, 1)),
  )
  config = dataclasses.replace(
    PLAIN,
    batch_size=batch_size,
    optimizer=(f'add_decayed_weights:weight_decay=0.2,sgd:momentum={momentum}'),
  )
  weight, velocity, losses = 1.0, 0.0, []
  for _ in range(config.num_epochs):
    error = weight * rows[:, 0] - rows[:, 1]
    losses.append(0.5 * np.mean(error**2))
    velocity = momentum * velocity + np.mean(error * rows[:, 0]) + 0.2 * weight
    weight -= 0.1 * velocity
  result = fit(KEYS[0], task, rows, np.arange(5), None, config)
  np.testing.assert_allclose(result.state.params, weight, rtol=1e-5)
  np.testing.assert_allclose(result.history['train_loss'], losses, rtol=1e-5)


def test_adam_averages_by_its_betas():
  rows = np.float32([1.0, -3.0])
  task = row_task(lambda w, rows: w[0] * rows, jnp.zeros(1))
  config = dataclasses.replace(
    PLAIN, optimizer='adam:b1=0.5:b2=0.75', batch_size=1, num_epochs=1
  )
  state = fit(KEYS[0], task, rows, np.arange(2), None, config).state
  first, second = rows if state.params[0] < 0 else rows[::-1]
  mean = (0.25 * first + 0.5 * second) / 0.75
  square = (0.1875 * first**2 + 0.25 * second**2) / 0.4375
  wanted = -0.1 * (np.sign(first) + mean / np.sqrt(square))
  np.testing.assert_allclose(state.params[0], wanted, rtol=1e-5)


def test_adam_decays_weights_but_not_biases():
  task = row_task(
    lambda p, rows: 0.0 * rows * (p['w'].sum() + p['b'].sum()),
    {'w': jnp.ones((2, 2)), 'b': jnp.ones(2)},
  )
  config = dataclasses.replace(PLAIN, optimizer='adamw:weight_decay=0.5')
  state = fit(KEYS[0], task, np.ones(4), np.arange(4), None, config).state
  np.testing.assert_allclose(state.params['w'], 0.95**3, rtol=1e-6)
  np.testing.assert_array_equal(state.params['b'], 1.0)


def test_every_row_is_visited_once_an_epoch_in_a_new_order():
  task = row_task(lambda visits, rows: -visits[rows], jnp.zeros(12))
  rows = np.arange(12)
  config = dataclasses.replace(PLAIN, num_epochs=1, learning_rate=1.0)
  visits = fit(KEYS[0], task, rows, rows[:10], None, config).state.params
  # The last batch has two rows, so each weighs twice as much there.
  np.testing.assert_array_equal(np.sort(visits[:10]), [0.25] * 8 + [0.5] * 2)
  np.testing.assert_array_equal(visits[10:], 0)
  last, before = set(), 0
  for num_epochs in (1, 2, 3):
    more = dataclasses.replace(config, num_epochs=num_epochs)
    total = fit(KEYS[0], task, rows, rows[:10], None, more).state.params
    last.add(tuple(np.flatnonzero(np.asarray(total - before)[:10] > 0.3)))
    before = total
  assert all(len(rows) == 2 for rows in last)
  assert len(last) > 1


def test_members_learn_their_own_labels(three):
  accuracy = three.history['valid_accuracy']
  assert accuracy.shape == (CONFIG.num_epochs, 3)
  assert (accuracy[-1, :2] > 0.9).all()
  assert accuracy[-1, 2] < 0.7
  train_loss = three.history['train_loss']
  assert (train_loss[-1] < train_loss[0]).all()
  assert 'valid_logits' not in three.history


def test_vmap_equals_map(data, three):
  other = fit_members(
    KEYS, TASK, data, TRAIN, VALID, CONFIG, member_mode='vmap'
  )
  assert_close(other.state, three.state, atol=2e-5)
  for name, values in three.history.items():
    np.testing.assert_allclose(other.history[name], values, atol=2e-5)


@pytest.mark.parametrize('member', [0, 2])
def test_a_member_does_not_depend_on_the_others(data, three, member):
  alone = fit_members(
    KEYS[member : member + 1],
    TASK,
    data,
    TRAIN,
    VALID,
    CONFIG,
    members=[member],
  )
  assert_close(
    take_member(alone.state, 0), take_member(three.state, member), atol=2e-5
  )


def test_fit_is_fit_members_of_one(data, three):
  single = fit(KEYS[0], TASK, data, TRAIN, VALID, CONFIG)
  assert_close(single.state, take_member(three.state, 0), atol=2e-5)
  assert single.history['valid_loss'].shape == (CONFIG.num_epochs,)


def test_members_may_have_their_own_rows(data):
  config = dataclasses.replace(CONFIG, num_epochs=1)
  rows = np.stack([TRAIN[:40], TRAIN[40:80]])
  both = fit_members(KEYS[:2], TASK, data, rows, VALID, config)
  second = fit_members(
    KEYS[1:2], TASK, data, TRAIN[40:80], VALID, config, members=[1]
  )
  assert_close(
    take_member(both.state, 1), take_member(second.state, 0), atol=2e-5
  )


@pytest.mark.parametrize('member_mode', ['map', 'vmap'])
def test_split_over_devices_equals_one_device(data, three, member_mode):
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  mesh = data_mesh(jax.devices()[:8])
  split = fit_members(
    KEYS, TASK, data, TRAIN, VALID, CONFIG, member_mode=member_mode, mesh=mesh
  )
  assert split.state.step.sharding.device_set == set(mesh.devices.flat)
  assert_close(split.state, three.state, atol=1e-5)
  kwargs = dict(batch_size=16, mesh=mesh, member_mode=member_mode)
  assert_close(
    measure_members(TASK, split.state, data, VALID, **kwargs),
    measure_members(TASK, three.state, data, VALID, batch_size=30),
    atol=5e-5,
  )


def test_batches_are_really_split(data):
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  mesh = data_mesh(jax.devices()[:8])
  seen = []

  def loss(params, rows):
    jax.debug.inspect_array_sharding(rows, callback=seen.append)
    return params * rows

  task = row_task(loss, jnp.ones(()))
  config = dataclasses.replace(PLAIN, batch_size=16)
  fit(KEYS[0], task, np.ones(16), np.arange(16), None, config, mesh=mesh)
  assert seen and all(s.shard_shape((16,)) == (2,) for s in seen)


def test_same_key_same_bits_other_key_other_result(data, three):
  again = fit_members(KEYS, TASK, data, TRAIN, VALID, CONFIG, member_mode='map')
  assert_close(again.state, three.state, rtol=0, atol=0)
  other = fit(KEYS[1], TASK, data, TRAIN, VALID, CONFIG)
  kernel = other.state.params['Dense_0']['kernel']
  assert np.abs(kernel - three.state.params['Dense_0']['kernel'][0]).max() > 0.1


def test_other_data_do_not_trace_again():
  traces = []

  def loss(params, rows):
    traces.append(1)
    return params * rows

  task = row_task(loss, jnp.ones(()))
  rows = np.arange(8)
  fit(KEYS[0], task, np.ones(8), rows, rows, PLAIN)
  first = len(traces)
  fit(KEYS[1], task, np.zeros(8), rows[::-1], rows, PLAIN)
  assert len(traces) == first


def test_plateau_halves_the_rate_down_to_its_floor():
  # The losses of the two members: constant, and falling for ever.
  task = Task(
    init=lambda key, data, member: {'params': jnp.zeros(())},
    gather=lambda data, indices, member, key: jnp.full(indices.shape, member),
    update=minimise(
      lambda p, stats, rows, mask, key: (p * 1.0 + 0.0 * rows, stats)
    ),
    measure=lambda p, stats, rows: {'loss': jnp.where(rows == 0, 1.0, p)},
  )
  config = TrainConfig(
    num_epochs=12,
    batch_size=2,
    learning_rate=4e-6,
    schedule='reduce_on_plateau:factor=0.5:patience=3:min_scale=0.25',
  )
  rows = np.arange(2)
  rates = fit_members(KEYS[:2], task, rows, rows, rows, config).history[
    'learning_rate'
  ]
  # Epoch 1 sets the best loss; three epochs without a better one halve.
  wanted = np.repeat([4e-6, 2e-6, 1e-6, 1e-6], [4, 3, 3, 2])
  np.testing.assert_allclose(rates[:, 0], wanted, rtol=1e-6)
  np.testing.assert_allclose(rates[:, 1], 4e-6, rtol=1e-6)


def test_cosine_falls_to_zero_at_the_last_step():
  task = row_task(lambda p, rows: p * rows, jnp.zeros(()))
  config = dataclasses.replace(PLAIN, schedule='cosine', num_epochs=4)
  result = fit(KEYS[0], task, np.ones(8), np.arange(8), None, config)
  steps = np.arange(8)
  rates = 0.1 * 0.5 * (1 + np.cos(np.pi * steps / 8))
  np.testing.assert_allclose(
    result.history['learning_rate'], rates[::2], rtol=1e-5
  )
  np.testing.assert_allclose(result.state.params, -rates.sum(), rtol=1e-5)


def test_measure_gives_rows_in_order_whatever_the_batch_size(data, three):
  rows = np.asarray([7, 3, 100, 3, 55, 0, 1])
  whole, ragged = (
    measure_members(TASK, three.state, data, rows, batch_size=n) for n in (7, 3)
  )
  assert whole['logits'].shape == (3, 7, 3)
  assert_close(ragged, whole, atol=1e-5)
  np.testing.assert_array_equal(whole['loss'][:, 1], whole['loss'][:, 3])
  found = whole['logits'].argmax(-1) == data['labels'][:, rows]
  np.testing.assert_array_equal(whole['accuracy'], found)


def test_last_validation_is_what_measure_gives(data, three):
  found = measure_members(TASK, three.state, data, VALID, batch_size=16)
  np.testing.assert_allclose(
    three.history['valid_loss'][-1], found['loss'].mean(1), rtol=1e-5
  )


def test_loss_that_is_not_finite_names_epoch_and_member():
  # Member 4 divides by zero once its parameter has reached zero: epoch 3.
  task = Task(
    init=lambda key, data, member: {'params': jnp.full((), 2.0)},
    gather=lambda data, indices, member, key: jnp.full(indices.shape, member),
    update=minimise(
      lambda p, stats, rows, mask, key: (
        p + jnp.where(rows == 4, 0 / jax.lax.stop_gradient(p), 0.0),
        stats,
      )
    ),
    measure=lambda p, stats, rows: {'loss': p + 0.0 * rows},
  )
  config = dataclasses.replace(PLAIN, learning_rate=1.0)
  rows = np.arange(4)
  seen = []
  with pytest.raises(DataError) as caught:
    fit_members(
      KEYS[:2],
      task,
      rows,
      rows,
      None,
      config,
      members=[1, 4],
      progress=lambda done, of, row: seen.append((done, of, list(row))),
    )
  message = str(caught.value)
  assert 'train_loss is not finite in epoch 3 of member 4' in message
  assert 'learning rate of 0.1' in message
  assert [(done, of) for done, of, _ in seen] == [(1, 3), (2, 3)]


@pytest.mark.parametrize(
  'change, words',
  [
    (dict(optimizer='adamm'), 'adamax.*did you mean adam'),
    (dict(schedule='steps'), 'constant, cosine'),
    (dict(num_epochs=0), 'num_epochs must be at least 1'),
    (dict(batch_size=0), 'batch_size must be at least 1'),
    (dict(learning_rate=float('nan')), 'learning_rate must be above 0'),
  ],
)
def test_settings_out_of_range_are_user_errors(change, words):
  with pytest.raises(UserError, match=words):
    dataclasses.replace(CONFIG, **change)


def test_wrong_rows_and_batches_are_user_errors(data):
  with pytest.raises(UserError, match='train_indices is empty'):
    fit(KEYS[0], TASK, data, [], VALID, CONFIG)
  with pytest.raises(UserError, match=r'int\[3, n\]'):
    fit_members(KEYS, TASK, data, np.zeros((2, 5)), VALID, CONFIG)
  with pytest.raises(UserError, match='valid_indices'):
    fit(KEYS[0], TASK, data, TRAIN, None, CONFIG)
  if jax.device_count() >= 8:
    mesh = data_mesh(jax.devices()[:8])
    odd = dataclasses.replace(CONFIG, batch_size=20)
    with pytest.raises(UserError, match='try batch_size=24'):
      fit(KEYS[0], TASK, data, TRAIN, VALID, odd, mesh=mesh)


@pytest.mark.parametrize(
  'batch_size, words', [(64, 'try batch_size=32'), (1, 'smaller network')]
)
def test_out_of_memory_names_a_smaller_batch(batch_size, words):
  with (
    pytest.raises(DataError, match=words),
    explain_out_of_memory(batch_size),
  ):
    jnp.zeros((1 << 30, 1 << 20), jnp.uint8).block_until_ready()
  with pytest.raises(KeyError), explain_out_of_memory(batch_size):
    raise KeyError('other errors pass')
