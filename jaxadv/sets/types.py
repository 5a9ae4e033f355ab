"""What an adversarial set holds, and the kinds there are."""

from __future__ import annotations

import hashlib
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxadv.errors import UserError


class Kind(NamedTuple):
  """A kind of adversarial picture.

  Attributes:
    name: How code, flags and files call it.
    paper: How Agarwal et al. (2022) call it.
    category: 'natural', 'artificial' or 'semantic'.
  """

  name: str
  paper: str
  category: str


KINDS = (
  Kind('natural', 'IN-A', 'natural'),
  Kind('natural_plus', 'IN-A+', 'natural'),
  Kind('deepfool', 'DF', 'artificial'),
  Kind('fgsm', 'FGSM', 'artificial'),
  Kind('pgd', 'PGD', 'artificial'),
  Kind('ni_plus', 'NI+', 'semantic'),
  Kind('ni_minus', 'NI-', 'semantic'),
  Kind('hsv', 'HSV', 'semantic'),
)


class AdversarialSet(NamedTuple):
  """Adversarial pictures of one kind, on the host.

  Attributes:
    images: uint8[N, H, W, C].
    labels: int32[N], the true classes.
    source: int32[N], ids of the clean pictures they come from.
    success_float: bool[N], whether the victim errs on the picture before it
      was rounded to 8 bit.
    success: bool[N], whether the victim errs on `images`.
    kind: Name of one of `KINDS`.
    class_names: One a class.
    provenance: What it was made of: JSON-able settings of the attack,
      fingerprints of victim and data, versions of packages.
  """

  images: np.ndarray
  labels: np.ndarray
  source: np.ndarray
  success_float: np.ndarray
  success: np.ndarray
  kind: str
  class_names: tuple[str, ...]
  provenance: dict[str, Any]


def kind_index(name: str) -> int:
  """Gives the number that `Batch.kind` holds for a kind; 0 is clean.

  Args:
    name: Name of a kind.

  Returns:
    Its index in `KINDS` plus one.

  Raises:
    UserError: If there is no such kind; names those there are.
  """
  names = [kind.name for kind in KINDS]
  if name not in names:
    raise UserError(f'no kind is called {name}; kinds are {", ".join(names)}')
  return names.index(name) + 1


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
