"""What the three functions of an attack are given, and what they must give.

Only shapes and dtypes are looked at, and that while the functions are traced:
nothing of it is left in what is compiled. `jaxadv.inputs` looks at values and
converts; here is for whoever writes an attack or calls its functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxadv.errors import UserError


@contextlib.contextmanager
def _explained(rule: str) -> Iterator[None]:
  """Puts a rule in words before what Chex says of the arrays that break it."""
  try:
    yield
  except (AssertionError, AttributeError, ValueError) as error:
    # Without the name of the assertion.
    reason = str(error).rpartition(' failed: ')[2].rpartition(' check: ')[2]
    raise UserError(f'{rule}: {reason}') from error


def check_arguments(keys: Any, images: Any, labels: Any) -> None:
  """Refuses what the `init` of an attack is not made for.

  Args:
    keys: key[B].
    images: float32[B, H, W, C].
    labels: int32[B].

  Raises:
    UserError: If one of them has another shape or dtype.
  """
  import chex  # Takes as long to import as all attacks together.

  with _explained('images must be float32[B, H, W, C]'):
    chex.assert_rank(images, 4)
    chex.assert_type(images, jnp.float32)
  num = images.shape[0]
  with _explained(f'labels must be int32[{num}], one a picture'):
    chex.assert_shape(labels, (num,))
    chex.assert_type(labels, jnp.int32)
  rule = f'keys must be key[{num}], one a picture, as picture_keys gives them'
  with _explained(rule):
    chex.assert_shape(keys, (num,))
    if not jax.dtypes.issubdtype(keys.dtype, jax.dtypes.prng_key):
      raise ValueError(f'they are {keys.dtype}')


def check_state(state: Any, num: int) -> None:
  """Refuses what `init` must not give.

  Args:
    state: The first state of an attack.
    num: Number of pictures.

  Raises:
    UserError: If a leaf lacks the leading axis, or `done` is no bool[num].
  """
  import chex

  with _explained(
    f'each leaf of what init gives needs a leading axis of {num}'
  ):
    chex.assert_tree_shape_prefix(state, (num,))
  with _explained(f'what init gives needs a field done, bool[{num}]'):
    chex.assert_shape(state.done, (num,))
    chex.assert_type(state.done, bool)


def check_step(stepped: Any, state: Any) -> None:
  """Refuses what `step` must not give.

  Args:
    stepped: The state after a step.
    state: The state before it.

  Raises:
    UserError: If structure or shapes have changed.
  """
  import chex

  with _explained('step must give a state of the shapes of the one before'):
    chex.assert_trees_all_equal_shapes(stepped, state)


def check_result(images: Any, success: Any, clean: Any) -> None:
  """Refuses what `finish` must not give.

  Args:
    images: The attacked images.
    success: Which of them are successes.
    clean: The images that were attacked, [B, H, W, C].

  Raises:
    UserError: If `images` are not floating of the shape of `clean`, or
      `success` is no bool[B].
  """
  import chex

  shape = tuple(clean.shape)
  with _explained(f'images that finish gives must be float32{list(shape)}'):
    chex.assert_shape(images, shape)
    chex.assert_type(images, float)
  with _explained(f'success that finish gives must be bool[{shape[0]}]'):
    chex.assert_shape(success, shape[:1])
    chex.assert_type(success, bool)
