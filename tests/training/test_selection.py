"""Going back to the epoch that the task's metric selects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.errors import UserError
from jaxadv.training import Task, TrainConfig, fit, fit_members, minimise

CONFIG = TrainConfig(
  num_epochs=5,
  batch_size=4,
  optimizer='sgd',
  learning_rate=0.1,
  schedule='constant',
)
ROWS = np.arange(4)
DATA = {'target': jnp.array([0.3, 0.1])}


def _gather(data, indices, member, key):
  return jnp.full(indices.shape, data['target'][member])


# The parameter grows by 0.1 an epoch; each member wants another value.
TASK = Task(
  init=lambda key, data, member: {'params': jnp.zeros(())},
  gather=_gather,
  update=minimise(
    lambda params, stats, rows, mask, key: (-params + 0 * rows, stats)
  ),
  measure=lambda params, stats, rows: {
    'loss': -params + 0 * rows,
    'distance': jnp.abs(params - rows),
  },
  selection_metric=lambda measured: -measured['distance'].max(),
)


def test_every_member_ends_with_its_best_epoch():
  keys = jax.random.split(jax.random.key(0), 2)
  found = fit_members(keys, TASK, DATA, ROWS, ROWS, CONFIG)
  np.testing.assert_allclose(found.state.params, [0.3, 0.1], rtol=1e-5)
  np.testing.assert_array_equal(
    found.history['valid_selection_metric'].argmax(0), [2, 0]
  )
  assert found.state.best is None
  last = fit_members(
    keys, TASK._replace(selection_metric=None), DATA, ROWS, ROWS, CONFIG
  )
  np.testing.assert_allclose(last.state.params, 0.5, rtol=1e-5)


def test_checkpoints_remember_the_best_epoch(tmp_path):
  run = lambda: fit(
    jax.random.key(0), TASK, DATA, ROWS, ROWS, CONFIG, checkpoint_dir=tmp_path
  )
  first, resumed = run(), run()
  np.testing.assert_allclose(resumed.state.params, 0.3, rtol=1e-5)
  np.testing.assert_array_equal(first.state.params, resumed.state.params)


def test_a_selection_metric_needs_validation_rows():
  with pytest.raises(UserError, match='valid_indices'):
    fit(jax.random.key(0), TASK, DATA, ROWS, None, CONFIG)
