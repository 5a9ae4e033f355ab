"""What an adversarial set holds."""

from __future__ import annotations

import hashlib
import re
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxadv.errors import UserError

# Those that a set may lack.
OPTIONAL = ('l2', 'linf', 'images_float')


class AdversarialSet(NamedTuple):
  """Adversarial pictures of one kind, on the host.

  Attributes:
    images: uint8[N, H, W, C].
    labels: int32[N], the true classes.
    source: int32[N], ids of the clean pictures they come from.
    success_float: bool[N], whether the victim errs on the picture before it
      was rounded to 8 bit.
    success: bool[N], whether the victim errs on `images`.
    kind: Name of what made it, such as 'pgd', for tables and files.
    class_names: One a class.
    provenance: What it was made of: JSON-able settings of the attack,
      fingerprints of victim and data, versions of packages.
    l2: float64[N], Euclidean norm of the change before rounding, in image
      units; None where nothing was changed, as of natural pictures.
    linf: float64[N], largest change of a channel, likewise.
    images_float: float32[N, H, W, C], the pictures before rounding; None if
      nobody asks for them.
  """

  images: np.ndarray
  labels: np.ndarray
  source: np.ndarray
  success_float: np.ndarray
  success: np.ndarray
  kind: str
  class_names: tuple[str, ...]
  provenance: dict[str, Any]
  l2: np.ndarray | None = None
  linf: np.ndarray | None = None
  images_float: np.ndarray | None = None


def check_kind(kind: str) -> None:
  """Checks that a kind can name tables and files.

  Raises:
    UserError: If it is no word.
  """
  if not isinstance(kind, str) or not re.fullmatch(r'[\w.:=/-]+', kind):
    raise UserError(
      f'kind is {kind!r} but must be one word, such as pgd or carlini_wagner'
    )


def select(adversarial: AdversarialSet, rows: np.ndarray) -> AdversarialSet:
  """Takes rows of a set, indices or bool[N]."""
  columns = {
    name: value[rows]
    for name, value in adversarial._asdict().items()
    if isinstance(value, np.ndarray)
  }
  return adversarial._replace(**columns)


def weights_fingerprint(variables: Any) -> str:
  """Hashes the weights of a classifier.

  Args:
    variables: A pytree of arrays; where each stands counts too.

  Returns:
    64 hexadecimal digits.
  """
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    array = np.ascontiguousarray(leaf)
    digest.update(
      f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode()
    )
    digest.update(array.tobytes())
  return digest.hexdigest()


def versions() -> dict[str, str]:
  """Gives the versions of the packages that decide what an attack finds."""
  names = ('jax', 'jaxlib', 'flax', 'numpy', 'pillow')
  return {name: metadata.version(name) for name in names}
