"""Weights of Keras and our own files load by name and give the same logits."""

import os
import pathlib

import chex
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from jaxadv import models
from jaxadv.classifier import from_linen, predict
from jaxadv.data import sources
from jaxadv.errors import DataError, UserError
from jaxadv.models import pretrained
from jaxadv.models.names import parse_network
from jaxadv.models.weights import formats, native, published


@pytest.fixture(scope='module')
def small():
  module = models.build('mobilenet', num_classes=3, width=0.1, image_size=32)
  shapes = jax.eval_shape(
    lambda: models.init_variables(jax.random.key(0), module, 32)
  )
  leaves, structure = jax.tree.flatten(shapes)
  random = np.random.default_rng(0)
  arrays = [random.random(leaf.shape, np.float32) for leaf in leaves]
  return module, jax.tree.unflatten(structure, arrays)


def _keras_arrays(variables):
  """Our variables as Keras would name and shape them, written out by hand."""
  arrays = {}
  for (kind, *_, layer, leaf), value in traverse_util.flatten_dict(
    variables
  ).items():
    if layer.endswith('_bn'):
      leaf = {
        ('params', 'scale'): 'gamma',
        ('params', 'bias'): 'beta',
        ('batch_stats', 'mean'): 'moving_mean',
        ('batch_stats', 'var'): 'moving_variance',
      }[kind, leaf]
    if layer.startswith('conv_dw') and leaf == 'kernel':
      value = value.transpose(0, 1, 3, 2)
    arrays[f'{layer}/{leaf}'] = value
  return arrays


def _load(path, template):
  return formats.to_variables(*formats.read(path), template, source=path)


def test_npz_with_keras_names(small, tmp_path):
  _, variables = small
  np.savez(tmp_path / 'w.npz', **_keras_arrays(variables))
  chex.assert_trees_all_equal(_load(tmp_path / 'w.npz', variables), variables)
  _, arrays = formats.read(tmp_path / 'w.npz')
  assert formats.num_classes(arrays, source='w.npz') == 3


def test_h5_of_keras_2(small, tmp_path):
  _, variables = small
  arrays = _keras_arrays(variables)
  with h5py.File(tmp_path / 'w.h5', 'w') as file:
    file.attrs['layer_names'] = sorted({name.split('/')[0] for name in arrays})
    for layer in file.attrs['layer_names']:
      group = file.create_group(layer)
      names = []
      for name, value in arrays.items():
        if name.startswith(f'{layer}/'):
          names.append(f'{name}:0')
          if 'conv_dw' in name:  # as Keras 2 spells it
            names[-1] = names[-1].replace('/kernel', '/depthwise_kernel')
          group[names[-1]] = value
      group.attrs['weight_names'] = [name.encode() for name in names]
  chex.assert_trees_all_equal(_load(tmp_path / 'w.h5', variables), variables)
  (tmp_path / 'broken.h5').write_bytes(b'not h5')
  with pytest.raises(DataError, match='broken.h5'):
    _load(tmp_path / 'broken.h5', variables)


def test_names_and_shapes_that_do_not_fit(small):
  _, variables = small
  arrays = _keras_arrays(variables)
  arrays['conv_more/kernel'] = arrays.pop('conv1/kernel')
  with pytest.raises(UserError, match=r'conv_more/kernel.*missing: conv1/ker'):
    formats.to_variables('keras', arrays, variables, source='here')
  arrays['conv1/kernel'] = np.zeros((5, 5, 3, 3))
  del arrays['conv_more/kernel']
  with pytest.raises(UserError, match=r'conv1/kernel.*\(5, 5, 3, 3\)'):
    formats.to_variables('keras', arrays, variables, source='here')


def test_own_files(small, tmp_path):
  _, variables = small
  path = tmp_path / 'own.npz'
  native.write_variables(path, variables)
  chex.assert_trees_all_equal(native.read_variables(path, variables), variables)
  chex.assert_trees_all_equal(native.read_variables(path), variables)
  less = {'params': variables['params']}
  with pytest.raises(UserError, match='left over'):
    native.read_variables(path, less)
  other = jax.tree.map(lambda leaf: np.zeros((2, *leaf.shape)), variables)
  with pytest.raises(UserError, match='shape'):
    native.read_variables(path, other)


def _weights_dir():
  folder = os.environ.get('JAXADV_WEIGHTS_DIR')
  if folder is None:
    data = os.environ.get('JAXADV_DATA_DIR', '')
    folder = pathlib.Path(data).absolute().parent / 'weights'
  return pathlib.Path(folder)


@pytest.mark.data
@pytest.mark.parametrize(
  'file, size, width, top1, top5',
  [
    ('mobilenet_v1_0.25_128.npz', 128, 0.25, 46.8, 72.2),
    ('mobilenet_v1_0.50_160.npz', 160, 0.5, 67.9, 88.0),
    ('mobilenet_v1_1.0_224.npz', 224, 1.0, 87.6, 97.7),
  ],
)
def test_published_accuracy(file, size, width, top1, top5):
  path = _weights_dir() / file
  if not path.is_file() or 'JAXADV_DATA_DIR' not in os.environ:
    pytest.skip(f'{file} or JAXADV_DATA_DIR is not here')
  import tensorflow_datasets as tfds

  module = models.build(
    'mobilenet', num_classes=1000, width=width, image_size=size
  )
  template = jax.eval_shape(
    lambda: models.init_variables(jax.random.key(0), module, size)
  )
  classifier = from_linen(
    module,
    _load(path, template),
    preprocess=models.BACKBONES['mobilenet'].preprocess,
  )
  source = tfds.data_source(
    'imagenet_sample',
    split='all',
    data_dir=os.environ['JAXADV_DATA_DIR'],
    download=False,
  )
  forward = jax.jit(lambda images: classifier(images / jnp.float32(255)))
  right = np.zeros(2)
  for start in range(0, len(source), 50):
    rows = [source[i] for i in range(start, min(start + 50, len(source)))]
    images = [
      np.asarray(
        Image.fromarray(row['image']).resize((size, size), Image.BICUBIC)
      )
      for row in rows
    ]
    best = np.argsort(-np.asarray(forward(np.stack(images))), axis=1)[:, :5]
    hits = best == np.array([row['label'] for row in rows])[:, None]
    right += hits[:, 0].sum(), hits.any(axis=1).sum()
  measured = 100 * right / len(source)
  np.testing.assert_allclose(measured, (top1, top5), atol=0.5)


@pytest.mark.data
@pytest.mark.parametrize(
  'name, accuracy',
  [
    ('resnet20', 0.9173),
    ('resnet32', 0.9263),
    ('resnet44', 0.9310),
    ('resnet56', 0.9339),
  ],
)
def test_published_accuracy_on_cifar10(name, accuracy):
  folder = _weights_dir()
  if (
    not (folder / f'{name}_cifar10.safetensors').is_file()
    or 'JAXADV_DATA_DIR' not in os.environ
  ):
    pytest.skip(f'weights of {name} or JAXADV_DATA_DIR are not here')
  network = parse_network(name)
  path = published.find(network, 32, folder)
  _, classifier = pretrained.load_classifier(network, 32, path)
  pictures = sources.load('cifar10', 'test')
  published.check_classes(path, 10, pictures.class_names, 'cifar10')
  right = predict(classifier, pictures.images, 100).argmax(-1)
  # Of 10,000; rounding may move a picture over a border.
  assert abs(np.mean(right == pictures.labels) - accuracy) < 1.5e-4


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, theirs, width, size',
  [
    ('vgg16', 'VGG16', 1, 224),
    ('vgg19', 'VGG19', 1, 224),
    ('mobilenet', 'MobileNet', 1, 224),
    ('mobilenet', 'MobileNet', 0.5, 224),
    ('inceptionv3', 'InceptionV3', 1, 139),
    ('xception', 'Xception', 1, 139),
    ('densenet121', 'DenseNet121', 1, 75),
    ('resnet50', 'ResNet50', 1, 75),
    ('resnet152', 'ResNet152', 1, 75),
  ],
)
def test_logits_equal_those_of_keras(name, theirs, width, size, monkeypatch):
  monkeypatch.setenv('KERAS_BACKEND', 'jax')
  applications = pytest.importorskip('keras.applications')
  options = dict(alpha=width, dropout=0.0) if name == 'mobilenet' else {}
  theirs = getattr(applications, theirs)(
    input_shape=(size, size, 3),
    weights=None,
    classifier_activation=None,
    **options,
  )
  random = np.random.default_rng(0)
  for weight in theirs.weights:
    if 'kernel' in weight.path:  # keeps activations near one
      fan = np.prod(weight.shape[:-1])
      if 'conv_dw' in weight.path or 'depthwise' in weight.path:
        fan = np.prod(weight.shape[:2])
      value = random.normal(0, (2 / fan) ** 0.5, weight.shape)
    elif 'gamma' in weight.path or 'variance' in weight.path:
      value = random.uniform(0.5, 1.5, weight.shape)
    else:
      value = random.normal(0, 0.1, weight.shape)
    weight.assign(value.astype(np.float32))
  module = models.build(name, num_classes=1000, width=width, image_size=size)
  template = jax.eval_shape(
    lambda: models.init_variables(jax.random.key(0), module, size)
  )
  arrays = {weight.path: np.asarray(weight) for weight in theirs.weights}
  variables = formats.to_variables('keras', arrays, template, source='Keras')
  images = random.uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
  expected = np.asarray(theirs(images, training=False))
  logits = jax.jit(module.apply)(variables, images)
  assert expected.std() > 1e-2
  assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
