"""The loop over batches, against all rows at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.data.batching import map_batches
from jaxadv.errors import DataError, UserError
from jaxadv.training.mesh import data_mesh

ROWS = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)


@pytest.mark.parametrize('batch_size', [1, 4, 11, 50])
@pytest.mark.parametrize('devices', [0, 2])
def test_batches_give_what_all_rows_at_once_do(batch_size, devices):
  mesh = data_mesh(jax.devices()[:devices]) if devices else None
  shapes = []

  @jax.jit
  def function(rows, keys, nothing):
    assert nothing is None
    shapes.append(rows.shape)
    drawn = jax.vmap(jax.random.uniform)(keys)
    return {'sum': rows.sum(axis=1), 'drawn': drawn}

  keys = jax.random.split(jax.random.key(0), len(ROWS))
  found = map_batches(
    function, ROWS, keys, None, batch_size=batch_size, mesh=mesh
  )
  np.testing.assert_allclose(found['sum'], ROWS.sum(axis=1), rtol=1e-6)
  np.testing.assert_array_equal(
    found['drawn'], jax.vmap(jax.random.uniform)(keys)
  )
  assert all(isinstance(leaf, np.ndarray) for leaf in found.values())
  # One shape, one compile; a multiple of the devices.
  assert len(shapes) == 1 and shapes[0][0] % max(devices, 1) == 0


def test_what_fills_the_last_batch_are_rows_that_there_are():
  """Zeros might give NaN, and with it warnings or errors."""
  seen = []
  map_batches(lambda rows: seen.append(rows) or rows, ROWS, batch_size=4)
  assert all(len(rows) == 4 for rows in seen)
  assert all((row == ROWS).all(axis=1).any() for rows in seen for row in rows)


def test_no_rows_and_no_batch_are_refused_and_memory_is_explained():
  with pytest.raises(UserError, match='batch_size is 0, of 11 rows'):
    map_batches(jnp.sum, ROWS, batch_size=0)
  with pytest.raises(UserError, match='of 0 rows'):
    map_batches(jnp.sum, ROWS[:0], batch_size=2)

  with pytest.raises(UserError, match=r'columns have \[11, 5\] rows'):
    map_batches(jnp.add, ROWS, ROWS[:5], batch_size=4)
  with pytest.raises(UserError, match='gives .3,. of 4 rows'):
    map_batches(lambda rows: rows.mean(0), ROWS, batch_size=4)

  def exhausted(rows):
    raise RuntimeError('RESOURCE_EXHAUSTED: out of memory')

  with pytest.raises(DataError, match='try batch_size=4'):
    map_batches(exhausted, ROWS, batch_size=8)
