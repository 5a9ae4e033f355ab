"""What ImageNet, ImageNet-A and ImageNet-A-Plus have to do with each other."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import tensorflow_datasets as tfds

from jaxadv.data.sources import Pictures, pictures_from_arrays
from jaxadv.errors import DataError, UserError

# The 200 classes of ImageNet-A among the 1,000 of ImageNet, a fact listed at
# https://github.com/hendrycks/natural-adv-examples.
# fmt: off
IMAGENET_A_CLASSES = (
  6, 11, 13, 15, 17, 22, 23, 27, 30, 37, 39, 42, 47, 50, 57, 70, 71, 76, 79, 89,
  90, 94, 96, 97, 99, 105, 107, 108, 110, 113, 124, 125, 130, 132, 143, 144,
  150, 151, 207, 234, 235, 254, 277, 283, 287, 291, 295, 298, 301, 306, 307,
  308, 309, 310, 311, 313, 314, 315, 317, 319, 323, 324, 326, 327, 330, 334,
  335, 336, 347, 361, 363, 372, 378, 386, 397, 400, 401, 402, 404, 407, 411,
  416, 417, 420, 425, 428, 430, 437, 438, 445, 456, 457, 461, 462, 470, 472,
  483, 486, 488, 492, 496, 514, 516, 528, 530, 539, 542, 543, 549, 552, 557,
  561, 562, 569, 572, 573, 575, 579, 589, 606, 607, 609, 614, 626, 627, 640,
  641, 642, 643, 658, 668, 677, 682, 684, 687, 701, 704, 719, 736, 746, 749,
  752, 758, 763, 765, 768, 773, 774, 776, 779, 780, 786, 792, 797, 802, 803,
  804, 813, 815, 820, 823, 831, 833, 835, 839, 845, 847, 850, 859, 862, 870,
  879, 880, 888, 890, 897, 900, 907, 913, 924, 932, 933, 934, 937, 943, 945,
  947, 951, 954, 956, 957, 959, 971, 972, 980, 981, 984, 986, 987, 988,
)
# fmt: on


def wnids() -> tuple[str, ...]:
  """Gives the WordNet ids of the 1,000 classes of ImageNet, in label order."""
  file = tfds.core.tfds_path('datasets/imagenet2012/labels.txt')
  return tuple(file.read_text().split())


def labels_of(class_names: Sequence[str]) -> list[int]:
  """Gives the labels among ImageNet's 1,000 of classes with these names.

  Args:
    class_names: WordNet ids.

  Raises:
    UserError: If one is none of ImageNet's.
  """
  index = {name: label for label, name in enumerate(wnids())}
  unknown = [name for name in class_names if name not in index]
  if unknown:
    raise UserError(
      f'there is a class {unknown[0]}, which is none of the 1,000 of ImageNet; '
      'classes must be called by WordNet ids such as n01498041'
    )
  return [index[name] for name in class_names]


def restrict(pictures: Pictures, classes: Sequence[int]) -> Pictures:
  """Gives pictures of some of the 1,000 classes the labels 0, 1, 2, ...

  Args:
    pictures: Pictures of these classes, labelled in 0..999.
    classes: Labels of the classes, in the order of the new ones.

  Returns:
    The pictures, with the names of these classes only.

  Raises:
    UserError: If a picture is of another class.
  """
  place = {label: new for new, label in enumerate(classes)}
  others = set(pictures.labels.tolist()) - set(place)
  if others:
    raise UserError(
      f'{pictures.name} has pictures of class {min(others)}, which is none of '
      f'the {len(place)} asked for; load it with classes={tuple(classes)}'
    )
  return pictures_from_arrays(
    pictures.images,
    np.array([place[label] for label in pictures.labels.tolist()]),
    class_names=tuple(pictures.class_names[label] for label in classes),
    name=pictures.name,
    source=pictures.source,
    file_names=pictures.file_names,
  )


def relabel(pictures: Pictures) -> Pictures:
  """Gives pictures of some classes of ImageNet the labels of all 1,000.

  Args:
    pictures: Their `class_names` are WordNet ids, as the class folders of
      ImageNet-A are called.

  Returns:
    The pictures with labels in 0..999 and 1,000 class names; unchanged if
    they have these already.

  Raises:
    UserError: If a class is none of ImageNet's.
  """
  names = wnids()
  if pictures.class_names == names:
    return pictures
  labels = np.array(labels_of(pictures.class_names))
  return pictures_from_arrays(
    pictures.images,
    labels[pictures.labels],
    class_names=names,
    name=pictures.name,
    source=pictures.source,
    file_names=pictures.file_names,
  )


def join_sources(crops: Pictures, pictures: Pictures) -> Pictures:
  """Gives every crop the source id of the picture that it was cut from.

  File names decide: that of a crop is that of its picture, or begins with it
  (without suffix). Where several pictures fit, the longest name counts.

  Args:
    crops: ImageNet-A-Plus, say, read from a folder.
    pictures: ImageNet-A.

  Returns:
    The crops with the source ids of `pictures`.

  Raises:
    UserError: If one of the sets has no file names.
    DataError: If crops have no picture; names the first and counts them.

  References:
    Li et al., ImageNet-A-Plus, 2021, https://arxiv.org/abs/2102.11731.
  """
  ids = {
    _stem(name): source
    for name, source in zip(_names(pictures), pictures.source, strict=True)
  }
  found = [_partner(_stem(name), ids) for name in _names(crops)]
  alone = [
    name
    for name, stem in zip(_names(crops), found, strict=True)
    if stem is None
  ]
  if alone:
    raise DataError(
      f'{len(alone)} of {len(found)} pictures of {crops.name} have no partner '
      f'in {pictures.name}, the first is {alone[0]}; file names must begin '
      'with those of the whole pictures'
    )
  source = np.array([ids[stem] for stem in found if stem], np.int32)
  return crops._replace(source=source)


def _names(pictures: Pictures) -> tuple[str, ...]:
  """Gives the file names, which must be there."""
  if pictures.file_names is None:
    raise UserError(
      f'{pictures.name} has no file names to join it by; read it from a '
      'folder, or from a TFDS set with the feature file_name'
    )
  return pictures.file_names


def _stem(name: str) -> str:
  """Takes the suffix away; the names of ImageNet-A hold further dots."""
  return name.rpartition('.')[0]


def _partner(stem: str, ids: Collection[str]) -> str | None:
  """Gives the longest of the names that a file name begins with."""
  for end in range(len(stem), 0, -1):
    # Names end in a number, which must not go on.
    if stem[:end] in ids and not stem[end : end + 1].isdigit():
      return stem[:end]
  return None
