"""Optimizers and schedules by name against those of Optax made by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import reduce_on_plateau

from jaxadv.errors import UserError
from jaxadv.storage import as_plain
from jaxadv.training import Group, Task, TrainConfig, fit, minimise
from jaxadv.training.optimizers import (
  OPTIMIZERS,
  SCHEDULES,
  build_optimizer,
  build_schedule,
)
from tests.training.nets import assert_close

KEY = jax.random.key(0)
ROWS = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
START = {
  'conv': {'kernel': jnp.full((3, 2), 0.5), 'bias': jnp.ones(2)},
  'head': {'kernel': jnp.ones((2, 2))},
}


def losses_of(params, rows):
  hidden = jnp.tanh(rows @ params['conv']['kernel'] + params['conv']['bias'])
  return ((hidden @ params['head']['kernel'] - 0.3) ** 2).sum(1)


TASK = Task(
  init=lambda key, data, member: {'params': START},
  gather=lambda data, indices, member, key: data[indices],
  update=minimise(
    lambda params, stats, rows, mask, key: (losses_of(params, rows), stats)
  ),
  measure=lambda params, stats, rows: {'loss': losses_of(params, rows)},
)


def train(num_epochs=5, batch_size=8, **settings):
  """One step an epoch by default, so that it does not matter in which order."""
  settings = dict(learning_rate=0.1, schedule='constant') | settings
  config = TrainConfig(num_epochs, batch_size, **settings)
  return fit(KEY, TASK, ROWS, np.arange(8), None, config)


def by_hand(optimizer, num_steps=5):
  def step(_, carry):
    params, state = carry
    gradients = jax.grad(lambda p: losses_of(p, ROWS).mean())(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  run = jax.jit(lambda start: jax.lax.fori_loop(0, num_steps, step, start))
  return run((START, optimizer.init(START)))[0]


def matrices(params):
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


BY_HAND = {
  'adam': optax.adam(0.1),
  'adam:b1=0.95:b2=0.9995': optax.adam(0.1, 0.95, 0.9995),
  'adamw:weight_decay=1/10:nesterov=true': optax.adamw(
    0.1, weight_decay=0.1, nesterov=True, mask=matrices
  ),
  'sgd': optax.sgd(0.1),
  'sgd:momentum=0.9:nesterov=true': optax.sgd(0.1, 0.9, nesterov=True),
  'lamb:weight_decay=0.1': optax.lamb(0.1, weight_decay=0.1, mask=matrices),
  'lars:weight_decay=0.1': optax.lars(
    0.1, weight_decay=0.1, weight_decay_mask=matrices
  ),
  'rmsprop:momentum=0.5': optax.rmsprop(0.1, momentum=0.5),
  'clip_by_global_norm:max_norm=0.1,lion': optax.chain(
    optax.clip_by_global_norm(0.1), optax.lion(0.1, mask=matrices)
  ),
  'add_decayed_weights:weight_decay=0.2,sgd:momentum=0.9': optax.chain(
    optax.add_decayed_weights(0.2, mask=matrices), optax.sgd(0.1, 0.9)
  ),
}


@pytest.mark.parametrize('spec', BY_HAND)
def test_what_is_written_is_what_optax_does(spec):
  found = train(optimizer=spec).state.params
  assert_close(found, by_hand(BY_HAND[spec]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_optimizer_moves_parameters(name):
  found = by_hand(build_optimizer(name, 0.1), 1)
  assert not np.allclose(found['head']['kernel'], 1.0, atol=1e-5, rtol=0)
  bare = by_hand(OPTIMIZERS[name](0.1), 1)
  assert_close(found['head'], bare['head'], rtol=1e-5)


def test_from_python_an_optimizer_may_be_built_or_a_function():
  wanted = by_hand(optax.adamw(0.1))
  built = train(optimizer=optax.adamw(0.1), learning_rate=None)
  assert_close(built.state.params, wanted, rtol=1e-5)
  function = train(optimizer=optax.adamw)
  assert_close(function.state.params, wanted, rtol=1e-5)


SCHEDULES_BY_HAND = {
  'constant': optax.constant_schedule(0.1),
  'cosine': optax.cosine_decay_schedule(0.1, 20),
  'cosine:alpha=0.1:decay_steps=12': optax.cosine_decay_schedule(0.1, 12, 0.1),
  'warmup_cosine:warmup_epochs=1.5:end_value=0.01': (
    optax.warmup_cosine_decay_schedule(0.0, 0.1, 6, 20, 0.01)
  ),
  'cosine_onecycle': optax.cosine_onecycle_schedule(20, 0.1),
  'cosine_onecycle:transition_epochs=4:pct_start=0.5': (
    optax.cosine_onecycle_schedule(16, 0.1, 0.5)
  ),
  'linear': optax.linear_schedule(0.1, 0.0, 20),
  'exponential:decay_rate=1/2:transition_epochs=1': optax.exponential_decay(
    0.1, 4, 0.5
  ),
  'piecewise_constant:2=0.1:3.5=1/2': optax.piecewise_constant_schedule(
    0.1, {8: 0.1, 14: 0.5}
  ),
}


@pytest.mark.parametrize('spec', SCHEDULES_BY_HAND)
def test_schedules_are_those_of_optax_in_epochs(spec):
  wanted = [SCHEDULES_BY_HAND[spec](step) for step in range(21)]
  schedule = build_schedule(spec, 0.1, 5, 4)
  found = [schedule(step) for step in range(21)]
  np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_history_has_the_rate_of_each_epoch():
  spec = 'piecewise_constant:2=0.1:3.5=1/2'
  history = train(batch_size=2, schedule=spec).history
  wanted = [0.1, 0.1, 0.01, 0.01, 0.005]
  np.testing.assert_allclose(history['learning_rate'], wanted, rtol=1e-6)


def test_a_schedule_moves_an_optimizer_as_in_optax():
  # Momentum after the rate, which a factor on updates would get wrong.
  spec, optimizer = 'cosine', 'rmsprop:momentum=0.9'
  found = train(schedule=spec, optimizer=optimizer).state.params
  wanted = optax.rmsprop(optax.cosine_decay_schedule(0.1, 5), momentum=0.9)
  assert_close(found, by_hand(wanted), rtol=1e-5)


def test_a_function_gives_multiples_of_the_rate():
  halved = train(schedule=lambda step: 0.5**step, optimizer='sgd')
  np.testing.assert_allclose(
    halved.history['learning_rate'], 0.1 * 0.5 ** np.arange(5), rtol=1e-6
  )
  built = train(
    schedule=lambda step: 0.5**step,
    optimizer=optax.sgd(0.1),
    learning_rate=None,
  )
  assert_close(built.state.params, halved.state.params, rtol=1e-5)


REFUSED = {
  'adamm': 'optimizer is .adamm. but must be one of .*; did you mean adam',
  'adamw:weight=1': 'has b1, b2, .*; did you mean weight_decay',
  'adamw:mask=true': 'adamw has no hyperparameter mask',
  'adamw:learning_rate=1': 'no hyperparameter learning_rate',
  'adamw:b1=none': 'b1 is .none. but must be a number',
  'sgd:nesterov=2': 'nesterov is .2. but must be true or false',
  'sgd:momentum=1': r'momentum must be in \[0, 1\); got 1',
  'adamw:weight_decay=-1': 'weight_decay must be at least 0',
  'sgd:momentum': 'given as sgd:KEY=VALUE',
  'adam,sgd': 'transformation is .adam. but must be one of .*, clip,',
  'clip,sgd': '.clip. needs max_delta',
  3: 'must be a name such as adamw, an optax.GradientTransformation',
}


@pytest.mark.parametrize('spec', REFUSED)
def test_unknown_optimizers_are_refused_with_what_there_is(spec):
  with pytest.raises(UserError, match=REFUSED[spec]):
    TrainConfig(optimizer=spec)


REFUSED_SCHEDULES = {
  'cosin': 'must be one of constant, .*; did you mean cosine',
  'warmup_cosine': 'needs warmup_epochs',
  'warmup_cosine:warmup_epochs=30': 'does not fit: .*positive decay_steps',
  'warmup_cosine:peak_value=1:warmup_epochs=1': 'no hyperparameter peak_value',
  'warmup_cosine:warmup_steps=1.5': 'but must be a whole number',
  'cosine:decay_steps=3:decay_epochs=1': 'gives decay_epochs and decay_steps',
  'exponential': 'needs decay_rate',
  'piecewise_constant:a=1': '.a. is no number',
  'reduce_on_plateau:factor=1': r'factor = 1',
  'reduce_on_plateau:patience=0': 'patience must be at least 1',
  3: 'must be one of constant',
}


@pytest.mark.parametrize('spec', REFUSED_SCHEDULES)
def test_unknown_schedules_are_refused_with_what_there_is(spec):
  with pytest.raises(UserError, match=REFUSED_SCHEDULES[spec]):
    TrainConfig(schedule=spec)


def test_a_learning_rate_is_given_once():
  refused = pytest.raises(UserError, match='must be None if optimizers are')
  with refused:
    TrainConfig(optimizer=optax.adam(0.1))
  with refused:
    TrainConfig(learning_rate=None)
  with refused:
    TrainConfig(groups=[Group('head', optimizer=optax.adam(0.1))])


def test_the_plateau_is_that_of_optax():
  config = TrainConfig(schedule='reduce_on_plateau:factor=1/4:patience=2')
  rows = np.arange(8)
  flat = TASK._replace(
    measure=lambda params, stats, rows: {'loss': 1.0 + 0 * rows[:, 0]}
  )
  found = fit(KEY, flat, ROWS, rows, rows, dataclasses.replace(config))
  wanted, scale = reduce_on_plateau(0.25, 2), []
  state = wanted.init(jnp.zeros(()))
  for _ in range(config.num_epochs):
    scale.append(float(state.scale))
    _, state = wanted.update(jnp.ones(()), state, value=1.0)
  np.testing.assert_allclose(
    found.history['learning_rate'], 1e-4 * np.array(scale), rtol=1e-6
  )


def test_groups_have_their_own_rates():
  groups = (Group('conv/bias', 0.5), Group('conv', 2.0))
  found = train(1, optimizer='sgd', groups=groups).state.params
  plain = train(1, optimizer='sgd').state.params
  moved = lambda params: jax.tree.map(lambda a, b: a - b, params, START)
  wanted = moved(plain)
  wanted['conv'] = {
    'kernel': 2 * wanted['conv']['kernel'],
    'bias': 0.5 * wanted['conv']['bias'],
  }
  assert_close(moved(found), wanted, rtol=1e-4, atol=1e-7)


def test_groups_have_their_own_optimizers():
  groups = (Group('head', optimizer='adam'),)
  found = train(optimizer='sgd', groups=groups).state.params
  wanted = by_hand(
    optax.partition(
      {'a': optax.adam(0.1), 's': optax.sgd(0.1)},
      {'conv': {'kernel': 's', 'bias': 's'}, 'head': {'kernel': 'a'}},
    )
  )
  assert_close(found, wanted, rtol=1e-5)


def test_frozen_groups_wait_for_their_epoch():
  groups = (Group('.*kernel', frozen_epochs=2),)
  settings = dict(batch_size=4, optimizer='adam', groups=groups)
  kernels = lambda num_epochs: [
    leaf
    for leaf in jax.tree.leaves(train(num_epochs, **settings).state.params)
    if leaf.ndim > 1
  ]
  start = [START['conv']['kernel'], START['head']['kernel']]
  assert_close(kernels(2), start, rtol=0, atol=0)
  # The first step of Adam is the learning rate, if it starts afresh.
  for now, before in zip(kernels(3), start, strict=True):
    assert np.abs(now - before).max() > 0.15
  bias = train(1, **settings).state.params['conv']['bias']
  assert np.abs(bias - 1).max() > 0.01


def test_groups_without_parameters_are_refused():
  with pytest.raises(UserError, match="'dense' matches; there are conv/bias"):
    train(groups=(Group('dense'),))
  with pytest.raises(UserError, match='no regular expression'):
    Group('(')
  with pytest.raises(UserError, match='multiplier must be at least 0'):
    Group('conv', -1.0)
  with pytest.raises(UserError, match='did you mean adam'):
    Group('conv', optimizer='adamm')


def test_groups_and_functions_are_resumed(tmp_path):
  groups = (Group('head', 0.5, 'adam', frozen_epochs=2),)

  def run(**changes):
    settings = dict(optimizer=optax.lion, groups=groups, learning_rate=0.1)
    config = TrainConfig(4, 4, schedule='constant', **settings | changes)
    return fit(
      KEY, TASK, ROWS, np.arange(8), None, config, checkpoint_dir=tmp_path
    )

  first, again = run(), run()
  assert_close(again.state, first.state, rtol=0, atol=0)
  with pytest.raises(UserError, match=r'another training \(config.groups'):
    run(groups=(Group('head', 0.25, 'adam', frozen_epochs=2),))
  with pytest.raises(UserError, match='leave out checkpoint_dir'):
    run(optimizer=optax.lion(0.1), learning_rate=None, groups=())


def test_settings_are_told_apart_by_value():
  config = TrainConfig(optimizer='adamw', groups=(Group('head', 0.5),))
  same = TrainConfig(optimizer='adamw', groups=(Group('head', 0.5),))
  assert config == same and hash(config) == hash(same)
  assert as_plain(config) == as_plain(same)
  other = dataclasses.replace(config, groups=(Group('head', 0.25),))
  assert as_plain(config) != as_plain(other)


def test_every_schedule_has_a_name_of_optax():
  assert {'warmup_cosine', 'cosine_onecycle', 'piecewise_constant'} < set(
    SCHEDULES
  )
  assert set(SCHEDULES) >= {spec.split(':')[0] for spec in SCHEDULES_BY_HAND}
