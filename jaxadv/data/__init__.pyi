from .batching import map_batches
from .pipeline import batches, concatenate, select, split_by_source, stored
from .sources import (
  Pictures,
  available,
  disjoint,
  divide,
  load,
  overlap,
  padded,
  pictures_from_arrays,
  shuffled,
  splits,
  subset,
)
from .streams import stream

__all__ = [
  'Pictures',
  'available',
  'batches',
  'concatenate',
  'disjoint',
  'divide',
  'load',
  'map_batches',
  'overlap',
  'padded',
  'pictures_from_arrays',
  'select',
  'shuffled',
  'split_by_source',
  'splits',
  'stored',
  'stream',
  'subset',
]
