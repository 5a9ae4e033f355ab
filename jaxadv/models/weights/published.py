"""Finds weights, on disk or on the network.

Three sources are known. `keras.applications` publishes .h5 files, which are
downloaded on demand. Torchvision and the ResNets for CIFAR-10 are published as
pickles, which are never opened here, since a pickle can run code: these
networks are read from .safetensors files that the user makes.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pooch

from jaxadv.errors import DataError, DoubtWarning, UserError
from jaxadv.models import BACKBONES, PUBLISHED
from jaxadv.models.names import NetworkName
from jaxadv.storage import explain_full_disk, replacing

WEIGHTS_DIR = 'JAXADV_WEIGHTS_DIR'
"""The environment variable with the folder where 'imagenet' looks first."""

_BASE = 'https://storage.googleapis.com/tensorflow/keras-applications'


class _File(NamedTuple):
  """A file of keras.applications: where it lies, and its MD5 if published."""

  folder: str
  name: str
  md5: str | None


# Folder, stem and MD5 as keras/src/applications of Keras 3.15 has them.
_KERAS = {
  'vgg16': ('vgg16', 'vgg16', '64373286793e3c8b2b4e3219cbf3544b'),
  'vgg19': ('vgg19', 'vgg19', 'cbe5617147190e668d6c5d5026f83318'),
  'densenet121': (
    'densenet',
    'densenet121',
    '9d60b8095a5708f2dcce2bca79d332c7',
  ),
  'inceptionv3': (
    'inception_v3',
    'inception_v3',
    '9a0d58056eeedaa3f26cb7ebd46da564',
  ),
  'xception': ('xception', 'xception', '0a58e3b7378bc2990ea3b43d5981f1f6'),
  'resnet50': ('resnet', 'resnet50', '2cb95161c43110f7111970584f804107'),
  'resnet152': ('resnet', 'resnet152', '100835be76be38e30d865e96f2aaae62'),
}
# MobileNet has a file for each width and image size, and no published hash.
_MOBILENET_WIDTHS = {0.25: '2_5', 0.5: '5_0', 0.75: '7_5', 1.0: '1_0'}
_MOBILENET_SIZES = (128, 160, 192, 224)
# How torchvision's files begin.
_TORCHVISION = {'resnet18': 'resnet18', 'resnext50': 'resnext50_32x4d'}
# Files of networks that were trained on CIFAR-10.
_CIFAR = {
  name: f'{name}_cifar10.safetensors'
  for name, backbone in BACKBONES.items()
  if backbone.published == 'cifar10'
}
_SAFETENSORS = {
  name: f'{stem}*.safetensors' for name, stem in _TORCHVISION.items()
} | _CIFAR
_CIFAR_CLASSES = (
  'airplane',
  'automobile',
  'bird',
  'cat',
  'deer',
  'dog',
  'frog',
  'horse',
  'ship',
  'truck',
)
# The networks of which there are weights of a name.
_NETWORKS = {
  'imagenet': ('mobilenet', *_KERAS, *_TORCHVISION),
  'cifar10': tuple(_CIFAR),
}
_SUFFIXES = ('.h5', '.npz', '.safetensors')
_CONVERT = (
  'torchvision publishes pickles, which are not opened here; convert one with '
  'PyTorch: `import torch, safetensors.torch`, `state = torch.load("{0}.pth", '
  'weights_only=True)`, `safetensors.torch.save_file(state, '
  '"{0}.safetensors")`, and give that file or its folder'
)
_CONVERT_CIFAR = (
  'https://github.com/akamaster/pytorch_resnet_cifar10 publishes pickles, '
  'which are not opened here; convert one with PyTorch: `import torch, '
  'safetensors.torch`, `state = torch.load("FILE.th", map_location="cpu", '
  'weights_only=True)["state_dict"]`, `safetensors.torch.save_file('
  '{{k.removeprefix("module."): v for k, v in state.items()}}, "{0}")`, and '
  f'give that file, its folder, or set {WEIGHTS_DIR} to it'
)


def find(
  network: NetworkName, image_size: int, where: str | os.PathLike[str]
) -> Path:
  """Finds the file with the weights of a backbone.

  A folder is searched for, in this order: the name under which Keras publishes
  the file; for MobileNet `mobilenet_v1_0.25_128.npz` and the like;
  `{name}_{width}_{image_size}.npz`, such as `vgg11_0.5_32.npz`; for the
  networks of torchvision `resnet18*.safetensors` or
  `resnext50_32x4d*.safetensors`, for those of CIFAR-10
  `resnet20_cifar10.safetensors` and the like.

  Downloads go to `jaxadv/weights` in the user's cache folder, once. They are
  checked against the MD5 that Keras lists. It lists none for MobileNet: there
  the SHA-256 of the first download is kept beside the file, and a file that
  differs from it later is refused (trust on first use).

  Args:
    network: The backbone, its width and the size of its pictures.
    image_size: Side of the pictures of the run, in pixels, which the network
      takes if it has no size of its own.
    where: A file (.h5, .npz or .safetensors), a folder, or one of
      `jaxadv.models.PUBLISHED`: then the folder that the environment variable
      `JAXADV_WEIGHTS_DIR` names, if it does and the file is there, else a
      download, of which there is none for 'cifar10'.

  Returns:
    The path of the file.

  Raises:
    DataError: If a downloaded file has changed, or the disk is full.
    UserError: If there is no such file or it is of no kind that the network
      is read from, no such weights are published, or the download fails.
  """
  name, width, _ = network
  size = network.size_for(image_size)
  where = os.fspath(where)
  if where not in PUBLISHED:
    path = Path(where)
    if path.is_dir():
      found = _search(name, width, size, path)
      if found is None:
        raise UserError(
          f'no weights of {name} (width {width}, {size} pixels) in the '
          f'folder {path}: looked for '
          f'{" or ".join(_patterns(name, width, size))}, it holds '
          f'{_listing(path)}; give the file itself or give it such a name'
        )
      return found
    return _checked_file(path, name)
  own = BACKBONES[name].published
  if where != own:
    known = f'ask for {own} or ' if name in _NETWORKS[own] else ''
    raise UserError(
      f'{where} weights are published of {", ".join(_NETWORKS[where])}, not '
      f'of {name}; {known}take one of these networks, or give a file or folder '
      'of weights'
    )
  folder = os.environ.get(WEIGHTS_DIR)
  if folder:
    if not Path(folder).is_dir():
      raise UserError(
        f'{WEIGHTS_DIR} is {folder!r}, which is no folder; set it to the '
        'folder of the weights, or unset it'
      )
    found = _search(name, width, size, Path(folder))
    if found is not None:
      return found
  file = _official(name, width, size)
  if file is None:
    raise UserError(_unpublished(name, width, size))
  return _download(file)


def check_classes(
  path: str | os.PathLike[str],
  num_classes: int,
  class_names: Sequence[str],
  dataset: str,
) -> None:
  """Checks that the classes of a network are those of the pictures.

  Args:
    path: The file of its weights.
    num_classes: How many classes it tells apart.
    class_names: Of the pictures.
    dataset: Where they are from, for errors.

  Raises:
    UserError: If their numbers differ.

  Warns:
    DoubtWarning: If the weights are those for CIFAR-10 and the classes are
      called otherwise.
  """
  if num_classes != len(class_names):
    raise UserError(
      f'{path} holds weights for {num_classes} classes, but {dataset} has '
      f'{len(class_names)}; give weights for these classes or another data set'
    )
  published = Path(path).name in _CIFAR.values()
  if published and tuple(class_names) != _CIFAR_CLASSES:
    warnings.warn(
      f'{path} tells apart {", ".join(_CIFAR_CLASSES)}, in this order, but the '
      f'classes of {dataset} are called {", ".join(class_names)}; its accuracy '
      'means something only if they are the same',
      DoubtWarning,
      stacklevel=2,
    )


def _checked_file(path: Path, name: str) -> Path:
  """Refuses what is no file of weights, or none of the kind for a network."""
  if path.suffix == '.th':
    # They are called resnet20-12fca82f.th and the like.
    made = f'{path.stem.partition("-")[0]}_cifar10.safetensors'
    raise UserError(f'{path} is a pickle: {_CONVERT_CIFAR.format(made)}')
  if path.suffix in ('.pth', '.pt'):
    raise UserError(f'{path} is a pickle: {_CONVERT.format(path.stem)}')
  if path.suffix not in _SUFFIXES or not path.is_file():
    raise UserError(
      f'{path} is no file of weights; give {", ".join(map(repr, PUBLISHED))}, '
      f'a folder, or a file that ends in {", ".join(_SUFFIXES)}'
    )
  if path.suffix == '.safetensors' and name not in _SAFETENSORS:
    raise UserError(
      f'{path} was given for {name}, but .safetensors files are read for '
      f'{", ".join(_SAFETENSORS)} only, in the layout of PyTorch; give an '
      '.h5 or .npz file'
    )
  return path


def _official(name: str, width: float, image_size: int) -> _File | None:
  """Gives the file that Keras publishes; None if it publishes none."""
  if name == 'mobilenet':
    if width in _MOBILENET_WIDTHS and image_size in _MOBILENET_SIZES:
      alpha = _MOBILENET_WIDTHS[width]
      return _File(name, f'mobilenet_{alpha}_{image_size}_tf.h5', None)
    return None
  if name not in _KERAS or width != 1:
    return None
  if name.startswith('vgg') and image_size != 224:
    return None  # its dense layers fit one size
  folder, stem, md5 = _KERAS[name]
  return _File(folder, f'{stem}_weights_tf_dim_ordering_tf_kernels.h5', md5)


def _unpublished(name: str, width: float, image_size: int) -> str:
  """Says why there is nothing to download."""
  if name in _TORCHVISION and width == 1:
    return f'weights of {name}: {_CONVERT.format(_TORCHVISION[name])}'
  if name in _CIFAR and width == 1:
    return f'weights of {name}: {_CONVERT_CIFAR.format(_CIFAR[name])}'
  if name == 'mobilenet':
    advice = (
      f'there are widths {", ".join(map(str, _MOBILENET_WIDTHS))} and '
      f'{", ".join(map(str, _MOBILENET_SIZES))} pixels'
    )
  elif name in _KERAS or name in _SAFETENSORS:
    advice = 'there is width 1'
    advice += ' and 224 pixels' if name.startswith('vgg') else ''
  else:
    advice = f'there are some of {", ".join(_NETWORKS["imagenet"])}'
  return (
    f'no weights of {name} with width {width} and {image_size} pixels are '
    f'published; {advice}; ask for those or give a file of your own'
  )


def _patterns(name: str, width: float, image_size: int) -> list[str]:
  """Lists the names that a file may have in a folder, the best first."""
  file = _official(name, width, image_size)
  patterns = [file.name] if file else []
  if name == 'mobilenet':
    alpha = '1.0' if width == 1 else f'{width:.2f}'
    patterns.append(f'mobilenet_v1_{alpha}_{image_size}.npz')
  patterns.append(f'{name}_{float(width)}_{image_size}.npz')
  if name in _SAFETENSORS and width == 1:
    patterns.append(_SAFETENSORS[name])
  return patterns


def _search(
  name: str, width: float, image_size: int, folder: Path
) -> Path | None:
  for pattern in _patterns(name, width, image_size):
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
      raise UserError(
        f'{folder} holds several files {pattern}: '
        f'{", ".join(path.name for path in found)}; give one of them'
      )
    if found:
      return found[0]
  return None


def _listing(folder: Path, most: int = 20) -> str:
  names = sorted(path.name for path in folder.iterdir())
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return (', '.join(names[:most]) or 'nothing') + more


def _download(file: _File) -> Path:
  url = f'{_BASE}/{file.folder}/{file.name}'
  folder = Path(pooch.os_cache('jaxadv')) / 'weights'
  known = f'md5:{file.md5}' if file.md5 else None
  try:
    with explain_full_disk(folder / file.name):
      path = Path(pooch.retrieve(url, known, fname=file.name, path=folder))
  except (OSError, ValueError) as error:  # requests' errors are OSErrors
    raise UserError(
      f'could not download {url} to {folder} ({error}); without network put '
      f'the file into a folder and give that one, or set {WEIGHTS_DIR} to it'
    ) from error
  if not file.md5:
    _check_against_first(path)
  return path


def _check_against_first(path: Path) -> None:
  """Refuses a file that differs from the one that was downloaded first."""
  record = path.with_name(f'{path.name}.sha256')
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  line = f'{digest}  {path.name}\n'  # what `sha256sum --check` reads
  if not record.exists():
    with replacing(record) as file:
      file.write(line.encode())
  elif record.read_bytes() != line.encode():
    raise DataError(
      f'{path} is not the file that was downloaded first: its SHA-256 is '
      f'{digest}, {record} has another; remove both to download it again'
    )
