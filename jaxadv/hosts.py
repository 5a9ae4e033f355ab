"""Several hosts that run one program: who writes, and arrays over all of them.

Every host runs the same program on the same inputs, and arrays are spread over
the devices of all hosts where work is split. What decides which way the
program goes, and what is written, comes from the first host alone, so that no
host takes another way and waits for the others for ever. On a single host
everything here is plain.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from jaxadv.errors import DataError, UserError

T = TypeVar('T')

# The first host may wait for another run to finish a piece of the cache.
_PATIENCE_MS = 30 * 24 * 3600 * 1000
_ERRORS = {'UserError': UserError, 'DataError': DataError, 'OSError': OSError}
_turns = itertools.count()


def join(
  coordinator: str | None = None,
  num_hosts: int | None = None,
  host_index: int | None = None,
) -> None:
  """Joins this process with those on the other hosts; before JAX is used.

  Args:
    coordinator: `HOST:PORT` of the first host, which listens there; None lets
      JAX ask the cluster (SLURM, Open MPI, TPU pods, Kubernetes).
    num_hosts: How many processes there are; None as above.
    host_index: Which of them this is, from 0; None as above.

  Raises:
    UserError: If the cluster cannot be recognised or the others do not come.
  """
  import jax

  try:
    jax.distributed.initialize(coordinator, num_hosts, host_index)
  except (RuntimeError, ValueError) as error:
    raise UserError(
      f'cannot join the other hosts ({" ".join(str(error).split())}); start '
      'every host within five minutes, with coordinator=HOST:PORT, '
      'num_hosts and host_index where the cluster is not recognised'
    ) from error


def several() -> bool:
  """Tells whether there are other hosts."""
  import jax

  # In this order: the second question starts the backend.
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
  """Tells whether this host is the one that writes and prints."""
  import jax

  return not several() or jax.process_index() == 0


def wait(name: str) -> None:
  """Waits until all hosts are here, however long that takes.

  The service that joined the hosts counts them, not the devices, whose
  collectives give up after half a minute on CPU.

  Args:
    name: Where, for the messages of JAX.
  """
  if several():
    from orbax.checkpoint import multihost

    # A barrier can be used once; all hosts count alike.
    key = f'jaxadv_{next(_turns)}_{name}'
    multihost.get_barrier_sync_fn()(key=key, timeout_ms=_PATIENCE_MS)


def on_first(function: Callable[[], T]) -> T:
  """Calls a function on the first host; every host gets what came of it.

  Args:
    function: Takes nothing, gives what JSON can hold. Hosts wait for it.

  Returns:
    What it gave on the first host.

  Raises:
    UserError: If it did there, on every host; so with the others.
    DataError: See above.
    OSError: See above.
  """
  if not several():
    return function()
  answer: dict[str, Any] = {}
  failure = None
  if is_first():
    try:
      answer['value'] = function()
    except (UserError, DataError, OSError) as error:
      failure = error
      kind = next(n for n, k in _ERRORS.items() if isinstance(error, k))
      answer |= {'error': kind, 'text': str(error)}
  wait(getattr(function, '__name__', 'function'))
  answer = json.loads(_broadcast(json.dumps(answer).encode()))
  if failure is not None:
    raise failure
  if 'error' in answer:
    raise _ERRORS[answer['error']](answer['text'])
  return answer['value']


def _broadcast(text: bytes) -> bytes:
  """Gives every host the bytes of the first one."""
  from jax.experimental import multihost_utils

  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  padded = np.frombuffer(text[:size].ljust(size), np.uint8)
  return multihost_utils.broadcast_one_to_all(padded).tobytes()


def agree(array: np.ndarray) -> np.ndarray:
  """Gives every host the array of the first one.

  For what is computed on each host and decides what comes next: two devices
  may round a logit differently.

  Args:
    array: Of one shape and dtype on all hosts; no bfloat16.

  Returns:
    NumPy array.
  """
  if not several():
    return np.asarray(array)
  from jax.experimental import multihost_utils

  wait('agree')  # One host may have computed for long.
  return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(array)))


def put(tree: Any, sharding: Any) -> Any:
  """Puts arrays that every host holds onto devices of all hosts.

  Args:
    tree: NumPy or JAX arrays, JAX keys; the same on each host.
    sharding: A JAX sharding, or None for the default device.

  Returns:
    The tree on the devices.
  """
  import jax

  if sharding is None or sharding.is_fully_addressable:
    return jax.device_put(tree, sharding)

  def place(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
      return leaf
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      data = place(jax.random.key_data(leaf))
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    # Fetched first: a slice of a JAX array would be a call of its own.
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(
      whole.shape, sharding, lambda index: whole[index]
    )

  return jax.tree.map(place, tree)


def fetch(tree: Any) -> Any:
  """Fetches arrays from the devices of all hosts to each of them.

  Args:
    tree: JAX arrays, whole or split over devices.

  Returns:
    The tree of whole NumPy arrays.
  """
  import jax

  if not several():
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  # One host may have compiled or computed for long; see `wait`.
  jax.block_until_ready(tree)
  wait('fetch')
  return multihost_utils.process_allgather(tree, tiled=True)


def own_copy(tree: Any) -> Any:
  """Takes this host's copy of arrays that every device holds.

  What is then done with them concerns this host alone.

  Args:
    tree: JAX arrays, each replicated over a mesh.

  Returns:
    The tree on one device of this host; on a single host the tree itself.
  """
  import jax

  if not several():
    return tree
  return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
