"""The pictures of a run: a side to learn from and one that is held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.common.options import data_dir
from jaxadv.data import imagenet, sources
from jaxadv.data.sources import Pictures
from jaxadv.errors import UserError
from jaxadv.storage import Cache


def split_names(
  config: Any, cache: Cache, dataset: str = ''
) -> tuple[str, str]:
  """Names the split to learn from and the held-out one.

  Args:
    config: With `dataset`, `data_dir`, and perhaps `train_split` and
      `heldout_split`, which are the usual ones if empty.
    cache: Where own data sets are prepared.
    dataset: In place of the config's.

  Raises:
    UserError: If the data set cannot be had.
  """
  found = sources.splits(
    dataset or config.dataset,
    data_dir=data_dir(config.data_dir),
    cache_dir=cache.root,
  )
  train, heldout = sources.usual_splits(found)
  given = [getattr(config, n, '') for n in ('train_split', 'heldout_split')]
  return given[0] or train, given[1] or heldout


def load_split(
  config: Any, cache: Cache, dataset: str, split: str, **options: Any
) -> Pictures:
  """Loads a split with the folders and the picture size of a run.

  Args:
    config: With `data_dir` and `image_size`.
    cache: Where own data sets are prepared.
    dataset: As `sources.load` takes it.
    split: Likewise.
    **options: Of `sources.load`.
  """
  return sources.load(
    dataset,
    split,
    **{
      'data_dir': data_dir(config.data_dir),
      'cache_dir': cache.root,
      'image_size': config.image_size,
    }
    | options,
  )


def load_sides(
  config: Any,
  cache: Cache,
  *,
  dataset: str = '',
  learns: bool = True,
  shuffle_train: bool = False,
  num_heldout: int = 0,
  grey: bool = False,
  classes: Sequence[int] | None = None,
) -> tuple[Pictures, Pictures]:
  """Loads the pictures to learn from and the held-out ones.

  Of a set with a single split, a quarter is to be learnt from.

  Args:
    config: With `dataset`, `data_dir`, `image_size`, `seed`, and `train_split`
      and `heldout_split` as `split_names` takes them.
    cache: Where own data sets are prepared.
    dataset: In place of the config's.
    learns: Whether anything is trained; else there is nothing to learn from.
    shuffle_train: Whether pictures to learn from come in random order, as
      held-out ones do.
    num_heldout: Read so many held-out pictures, drawn at random; 0 for all.
    grey: Whether to read one channel, and to pad pictures rather than enlarge
      them.
    classes: Keep these labels of ImageNet's alone, as 0, 1, 2, ...

  Raises:
    UserError: If the data set or a split cannot be had, or the splits have
      pictures in common.
  """
  dataset = dataset or config.dataset
  train_split, heldout_split = split_names(config, cache, dataset)
  if train_split != heldout_split:
    shared = sources.overlap(
      dataset,
      train_split,
      heldout_split,
      data_dir=data_dir(config.data_dir),
      cache_dir=cache.root,
    )
    if shared:
      raise UserError(
        f'--train_split {train_split} and --heldout_split {heldout_split} of '
        f'{dataset} have {shared} pictures in common; give two that have none, '
        'such as train[:70%] and train[70%:]'
      )

  def load(split: str, **options: Any) -> Pictures:
    if grey:
      options |= {'image_size': None, 'channels': 1}
    found = load_split(
      config, cache, dataset, split, classes=classes, **options
    )
    if classes is not None:
      found = imagenet.restrict(found, classes)
    return sources.padded(found, config.image_size) if grey else found

  drawn = {'seed': config.seed, 'limit': num_heldout} if num_heldout else {}
  heldout = sources.shuffled(load(heldout_split, **drawn), config.seed)
  if not learns:
    return sources.subset(heldout, slice(0)), heldout
  if train_split == heldout_split:
    return sources.divide(heldout)
  train = load(train_split)
  if shuffle_train:
    train = sources.shuffled(train, config.seed)
  return train, heldout
