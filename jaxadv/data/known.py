"""What is known of data sets by their names."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Photographs and the like, of which a mirrored one is of the same class, by
# how their names begin. Digits, letters and signs are not among them.
_MIRRORED = re.compile(
  r'(cifar|imagenet|imagenette|imagewoof|imagewang|tiny_imagenet|stl10'
  r'|fashion_mnist|caltech|cars196|cats_vs_dogs|dtd|eurosat|food101'
  r'|i_naturalist|oxford_flowers|oxford_iiit_pet|patch_camelyon|places365'
  r'|resisc45|stanford_dogs|sun397|tf_flowers|uc_merced)([\d_].*)?'
)


def may_mirror(name: str | os.PathLike[str]) -> bool:
  """Tells whether a mirrored picture of a data set is one of its class.

  A mirrored 2 is no 2, and of pictures that are not known it cannot be told;
  this holds of sets only that are known by name, as most sets of photographs.

  Args:
    name: As `jaxadv.data.sources.load` takes it: the name of a set, with or
      without version and config, or the path of a folder or .npz file. Of a
      path the last name counts: `DIR/cifar10` is taken for what it says.

  Returns:
    Whether it may be mirrored; False for sets that are not known.
  """
  parts = [
    part.partition(':')[0].lower().removesuffix('.npz').replace('-', '_')
    for part in Path(name).parts
  ]
  versioned = bool(parts and re.fullmatch(r'\d+\.\d+\.\d+', parts[-1]))
  if versioned:
    parts.pop()
  # The name of a set may be followed by a config, that of a folder not.
  config = len(parts) == 2 and not Path(name).exists()
  named = parts[-2:] if versioned or config else parts[-1:]
  return any(_MIRRORED.fullmatch(part) for part in named)
