"""Published weights are found by name, checked, and loaded from any format."""

import hashlib

import chex
import flax.linen as nn
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pooch
import pytest
import requests
import safetensors.numpy
from flax import traverse_util

from jaxadv import models, storage
from jaxadv.errors import DataError, DoubtWarning, UserError
from jaxadv.models.names import NetworkName, parse_network
from jaxadv.models.pretrained import load_classifier
from jaxadv.models.weights import formats, native, published

VGG16 = 'vgg16_weights_tf_dim_ordering_tf_kernels.h5'


class Tiny(nn.Module):
  """One layer of each kind, with names of torchvision's."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 2), feature_group_count=2, name='layer1_0_conv2')(x)
    x = nn.BatchNorm(True, name='layer1_0_downsample_1')(x)
    return nn.Dense(3, name='fc')(x.mean((1, 2)))


def _random(template):
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: random.normal(size=leaf.shape).astype(np.float32), template
  )


def _variables(name, width, image_size, num_classes=3, **options):
  module = models.build(
    name,
    num_classes=num_classes,
    width=width,
    image_size=image_size,
    **options,
  )
  template = jax.eval_shape(
    lambda: models.init_variables(jax.random.key(0), module, image_size)
  )
  return module, _random(template)


def _find(name, width, image_size, where):
  network = NetworkName(name, width, image_size)
  return published.find(network, image_size, where)


def _load(path, template):
  return formats.to_variables(*formats.read(path), template, source=path)


def _num_classes(path):
  _, arrays = formats.read(path)
  return formats.num_classes(arrays, source=path)


def _write_h5(path, weights):
  """Writes `{layer: {name of the weight: array}}` as Keras 2 does."""
  with h5py.File(path, 'w') as file:
    file.attrs['layer_names'] = [layer.encode() for layer in weights]
    for layer, arrays in weights.items():
      group = file.create_group(layer)
      group.attrs['weight_names'] = [name.encode() for name in arrays]
      for name, array in arrays.items():
        group[name] = array


def _as_keras(variables):
  """`{layer: {leaf: array}}` with Keras' words for the leaves."""
  layers = {}
  for (*_, layer, leaf), array in traverse_util.flatten_dict(variables).items():
    if layer.endswith('bn'):
      leaf = {
        'scale': 'gamma',
        'bias': 'beta',
        'mean': 'moving_mean',
        'var': 'moving_variance',
      }[leaf]
    elif 'conv_dw' in layer:
      array, leaf = array.transpose(0, 1, 3, 2), 'depthwise_kernel'
    layers.setdefault(layer, {})[leaf] = array
  return layers


def test_vgg_as_published(tmp_path):
  module, variables = _variables('vgg16', 0.02, 32)
  spelling = {'kernel': 'W', 'bias': 'b'}
  _write_h5(
    tmp_path / VGG16,
    {
      layer: {f'{layer}_{spelling[k]}_1:0': v for k, v in arrays.items()}
      for layer, arrays in _as_keras(variables).items()
    },
  )
  path = _find('vgg16', 1, 224, tmp_path)
  assert path == tmp_path / VGG16
  assert _num_classes(path) == 3
  chex.assert_trees_all_equal(_load(path, variables), variables)


def test_mobilenet_as_published(tmp_path):
  module, variables = _variables('mobilenet', 0.25, 128)
  weights = {
    layer: {f'{layer}/{leaf}:0': array for leaf, array in arrays.items()}
    for layer, arrays in _as_keras(variables).items()
  }
  _write_h5(tmp_path / 'mobilenet_2_5_128_tf.h5', weights)
  args = 'mobilenet', 0.25, 128, tmp_path
  assert _num_classes(_find(*args)) == 3
  chex.assert_trees_all_equal(_load(_find(*args), variables), variables)


@pytest.mark.parametrize(
  'name, old',
  [
    (
      'densenet121',
      {
        'conv1_conv': 'conv1/conv',
        'conv1_bn': 'conv1/bn',
        'predictions': 'fc1000',
      },
    ),
    ('resnet50', {'predictions': 'probs'}),
  ],
)
def test_old_names_as_published(name, old, tmp_path):
  module, variables = _variables(name, 0.0625, 64)
  layers = _as_keras(variables)
  assert old.keys() <= layers.keys()
  layers = {old.get(layer, layer): layers[layer] for layer in layers}
  path = tmp_path / f'{name}_weights_tf_dim_ordering_tf_kernels.h5'
  _write_h5(
    path,
    {
      layer: {f'{layer}/{leaf}:0': array for leaf, array in arrays.items()}
      for layer, arrays in layers.items()
    },
  )
  assert _num_classes(path) == 3
  chex.assert_trees_all_equal(
    _load(_find(name, 1.0, 224, tmp_path), variables), variables
  )


def test_torchvision_layout(tmp_path):
  module = Tiny()
  template = jax.eval_shape(
    lambda: module.init(jax.random.key(0), jnp.zeros((1, 5, 5, 6)))
  )
  random = np.random.default_rng(1)
  state = {
    name: random.normal(size=shape).astype(np.float32)
    for name, shape in {
      'layer1.0.conv2.weight': (4, 3, 3, 2),
      'layer1.0.conv2.bias': (4,),
      'layer1.0.downsample.1.weight': (4,),
      'layer1.0.downsample.1.bias': (4,),
      'layer1.0.downsample.1.running_mean': (4,),
      'layer1.0.downsample.1.running_var': (4,),
      'layer1.0.downsample.1.num_batches_tracked': (),
      'fc.weight': (3, 4),
      'fc.bias': (3,),
    }.items()
  }
  path = tmp_path / 'resnet18-f37072fd.safetensors'
  safetensors.numpy.save_file(state, path)
  args = 'resnet18', 1.0, 224, tmp_path
  assert _num_classes(_find(*args)) == 3
  loaded = _load(_find(*args), template)
  params, statistics = loaded['params'], loaded['batch_stats']
  kernel, theirs = params['layer1_0_conv2']['kernel'], state['fc.weight']
  for at in np.ndindex(3, 2, 3, 4):
    height, width, ins, out = at
    expected = state['layer1.0.conv2.weight'][out, ins, height, width]
    assert kernel[at] == expected
  chex.assert_trees_all_equal(
    params['fc'], {'kernel': theirs.T, 'bias': state['fc.bias']}
  )
  for collection, ours, leaf in [
    (params, 'scale', 'weight'),
    (params, 'bias', 'bias'),
    (statistics, 'mean', 'running_mean'),
    (statistics, 'var', 'running_var'),
  ]:
    chex.assert_trees_all_equal(
      collection['layer1_0_downsample_1'][ours],
      state[f'layer1.0.downsample.1.{leaf}'],
    )

  state['layer1.0.conv3.weight'] = state.pop('layer1.0.conv2.weight')
  with pytest.raises(
    UserError,
    match=r'layer1\.0\.conv3\.weight; missing: layer1\.0\.conv2\.weight',
  ):
    formats.to_variables('torchvision', state, template, source='here')
  state['layer1.0.conv2.weight'] = np.zeros((4, 3, 5, 5), np.float32)
  del state['layer1.0.conv3.weight']
  with pytest.raises(UserError, match=r'conv2\.weight.*\(5, 5, 3, 4\)'):
    formats.to_variables('torchvision', state, template, source='here')


@pytest.mark.parametrize('name', ['resnet18', 'resnext50', 'resnet32'])
def test_all_names_of_torchvision(name, tmp_path):
  module, variables = _variables(name, 0.0625, 64)
  path = _torch_file(tmp_path / 'w.safetensors', variables)
  chex.assert_trees_all_equal(_load(path, variables), variables)


def _torch_file(path, variables):
  """Writes variables with torchvision's names, put together block by block."""
  state = {}
  for (*_, layer, leaf), array in traverse_util.flatten_dict(variables).items():
    parts = layer.split('_')
    leaf = {
      'kernel': 'weight',
      'scale': 'weight',
      'mean': 'running_mean',
      'var': 'running_var',
    }.get(leaf, leaf)
    if array.ndim == 4:
      array = np.moveaxis(array, (2, 3), (1, 0))
    elif array.ndim == 2:
      array = array.T
    state['.'.join([*parts, leaf])] = np.ascontiguousarray(array)
  safetensors.numpy.save_file(state, path)
  return path


def test_own_files(tmp_path):
  module, variables = _variables('vgg11', 0.05, 32, num_classes=7)
  native.write_variables(tmp_path / 'vgg11_0.05_32.npz', variables)
  args = 'vgg11', 0.05, 32, tmp_path
  assert _num_classes(_find(*args)) == 7
  chex.assert_trees_all_equal(_load(_find(*args), variables), variables)


def test_a_file_is_read_once_and_tells_how_the_network_was_trained(
  tmp_path, monkeypatch
):
  scratch = models.BACKBONES['vgg11'].from_scratch
  _, variables = _variables('vgg11', 0.05, 32, num_classes=7, **scratch)
  native.write_variables(tmp_path / 'vgg11_0.05_32.npz', variables)
  reads = []

  def read_npz(path):
    reads.append(path)
    return storage.read_npz(path)

  monkeypatch.setattr(formats, 'read_npz', read_npz)
  # Resized by the classifier from 48 pixels.
  network = parse_network('vgg11:0.05:32')
  module, classifier = load_classifier(network, 48, tmp_path)
  assert module.batch_norm and module.num_classes == 7
  chex.assert_trees_all_equal(classifier.variables, variables)
  assert classifier.preprocess.size == 32
  assert reads == [tmp_path / 'vgg11_0.05_32.npz']


@pytest.mark.parametrize('value', [np.nan, np.inf, 'many'])
def test_values_that_are_no_finite_numbers_are_named(value, tmp_path):
  _, variables = _variables('vgg11', 0.05, 32)
  flat = traverse_util.flatten_dict(variables, sep='/')
  name = 'params/head/predictions/bias'
  np.savez(tmp_path / 'w.npz', **flat | {name: np.array([0, value, 0])})
  with pytest.raises(DataError, match=f'{name} of .*w.npz .*not finite'):
    load_classifier(parse_network('vgg11:0.05'), 32, tmp_path / 'w.npz')


@pytest.mark.parametrize(
  'name, width, image_size, files',
  [
    (
      'mobilenet',
      0.5,
      160,
      [
        'mobilenet_0.5_160.npz',
        'mobilenet_v1_0.50_160.npz',
        'mobilenet_5_0_160_tf.h5',
      ],
    ),
    ('mobilenet', 1, 224, ['mobilenet_v1_1.0_224.npz']),
    ('mobilenet', 0.3, 32, ['mobilenet_0.3_32.npz']),
    (
      'inceptionv3',
      1,
      299,
      ['inception_v3_weights_tf_dim_ordering_tf_kernels.h5'],
    ),
    ('resnext50', 1, 224, ['resnext50_32x4d-1a0047aa.safetensors']),
    (
      'resnet20',
      1,
      32,
      ['resnet20_cifar10.safetensors', 'resnet20_1.0_32.npz'],
    ),
  ],
)
def test_the_best_name_in_a_folder(name, width, image_size, files, tmp_path):
  (tmp_path / 'mobilenet_v1_0.25_128.npz').touch()  # of another width
  for file in files:
    (tmp_path / file).touch()
    assert _find(name, width, image_size, tmp_path).name == file


def test_what_is_not_found_is_listed(tmp_path):
  (tmp_path / 'notes.txt').touch()
  with pytest.raises(UserError, match=f'{VGG16}.*vgg16_1.0_224.npz.*notes.txt'):
    _find('vgg16', 1, 224, tmp_path)
  (tmp_path / 'resnet18-a.safetensors').touch()
  (tmp_path / 'resnet18-b.safetensors').touch()
  with pytest.raises(UserError, match='several.*resnet18-a.*resnet18-b'):
    _find('resnet18', 1, 224, tmp_path)


@pytest.mark.parametrize(
  'where, message',
  [
    ('absent', "'imagenet', 'cifar10', a folder, or a file"),
    ('notes.txt', r'\.h5, \.npz, \.safetensors'),
    ('resnet18.pth', 'weights_only=True'),
    ('resnet20-1a.th', r'"state_dict".*module.*"resnet20_cifar10\.s'),
  ],
)
def test_what_is_no_file_of_weights(where, message, tmp_path):
  (tmp_path / 'notes.txt').touch()
  with pytest.raises(UserError, match=message):
    _find('resnet18', 1, 224, tmp_path / where)


def _whole(path):
  arrays = {'fc1/kernel': np.ones((40, 5)), 'fc1/bias': np.zeros(5)}
  match path.suffix:
    case '.npz':
      np.savez(path, **arrays)
    case '.safetensors':
      safetensors.numpy.save_file(arrays, path)
    case '.h5':
      with h5py.File(path, 'w') as file:
        file.attrs['layer_names'] = [b'fc1']
        group = file.create_group('fc1')
        group.attrs['weight_names'] = [name.encode() for name in arrays]
        for name, array in arrays.items():
          group[name] = array
  return path.read_bytes()


@pytest.mark.parametrize('suffix', ['.h5', '.npz', '.safetensors'])
@pytest.mark.parametrize(
  'broken',
  [
    lambda whole: b'',
    lambda whole: b'<!DOCTYPE html><html>404 Not Found</html>',
    lambda whole: whole[:20],
    lambda whole: whole[: len(whole) // 2],
    lambda whole: whole[:-1],
  ],
  ids=['empty', 'page', 'start', 'half', 'but the last byte'],
)
def test_broken_weights_are_named_in_a_sentence(tmp_path, suffix, broken):
  path = tmp_path / f'bad{suffix}'
  path.write_bytes(broken(_whole(path)))
  with pytest.raises(DataError, match=f'cannot read .*bad{suffix}'):
    _num_classes(path)


def _other_layers(file):
  file.attrs['layer_names'] = 3


def _a_layer_that_is_an_array(file):
  file.attrs['layer_names'] = [b'fc1']
  file['fc1'] = np.ones(3)


def _a_weight_that_is_a_group(file):
  file.attrs['layer_names'] = [b'fc1']
  file.create_group('fc1').attrs['weight_names'] = [b'kernel']
  file['fc1'].create_group('kernel')


@pytest.mark.parametrize(
  'fill',
  [
    lambda file: None,
    _other_layers,
    _a_layer_that_is_an_array,
    _a_weight_that_is_a_group,
  ],
)
def test_an_h5_of_something_else_is_named(tmp_path, fill):
  with h5py.File(tmp_path / 'other.h5', 'w') as file:
    fill(file)
  with pytest.raises(DataError, match='other.h5 as Keras weights'):
    _num_classes(tmp_path / 'other.h5')


def test_headless_files(tmp_path):
  np.savez(tmp_path / 'notop.npz', **{'fc1/bias': np.zeros(3)})
  with pytest.raises(UserError, match='predictions'):
    _num_classes(tmp_path / 'notop.npz')
  safetensors.numpy.save_file({}, tmp_path / 'vgg.safetensors')
  with pytest.raises(UserError, match='resnet18, resnext50, resnet20'):
    _find('vgg16', 1, 224, tmp_path / 'vgg.safetensors')


@pytest.fixture
def shop(monkeypatch, tmp_path):
  """A stand-in for the network: pooch.retrieve with `contents`, by call."""
  monkeypatch.delenv(published.WEIGHTS_DIR, raising=False)
  monkeypatch.setattr(pooch, 'os_cache', lambda project: tmp_path / project)
  calls = []

  def retrieve(url, known_hash, fname, path):
    path.mkdir(parents=True, exist_ok=True)
    (path / fname).write_bytes(retrieve.contents)
    calls.append((url, known_hash))
    return str(path / fname)

  retrieve.contents = b'weights'
  retrieve.calls = calls
  monkeypatch.setattr(pooch, 'retrieve', retrieve)
  return retrieve


def test_downloads_are_checked_against_the_listed_hash(shop, tmp_path):
  path = _find('resnet50', 1.0, 224, 'imagenet')
  assert path.parent == tmp_path / 'jaxadv' / 'weights'
  assert shop.calls == [
    (
      'https://storage.googleapis.com/tensorflow/keras-applications/resnet/'
      'resnet50_weights_tf_dim_ordering_tf_kernels.h5',
      'md5:2cb95161c43110f7111970584f804107',
    )
  ]
  assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_download_without_listed_hash_may_not_change(shop):
  def find():
    return _find('mobilenet', 0.25, 128, 'imagenet')

  path = find()
  assert shop.calls[0][0].endswith('mobilenet/mobilenet_2_5_128_tf.h5')
  assert shop.calls[0][1] is None
  record = path.with_name(f'{path.name}.sha256')
  digest = hashlib.sha256(b'weights').hexdigest()
  assert record.read_text() == f'{digest}  {path.name}\n'
  assert find() == path
  shop.contents = b'others'
  with pytest.raises(DataError, match='first'):
    find()
  record.unlink()
  assert find() == path


@pytest.mark.parametrize(
  'error', [requests.ConnectionError('no route'), ValueError('bad hash')]
)
def test_a_failed_download_says_how_to_do_without(error, shop, monkeypatch):
  def retrieve(*args, **kwargs):
    raise error

  monkeypatch.setattr(pooch, 'retrieve', retrieve)
  with pytest.raises(UserError) as caught:
    _find('vgg19', 1, 224, 'imagenet')
  message = str(caught.value)
  for part in (
    'https://storage.googleapis.com/',
    'vgg19/vgg19_weights',
    'jaxadv/weights',
    str(error),
    published.WEIGHTS_DIR,
  ):
    assert part in message


def test_the_folder_in_the_environment_comes_first(shop, monkeypatch, tmp_path):
  monkeypatch.setenv(published.WEIGHTS_DIR, str(tmp_path))
  assert _find('vgg16', 1, 224, 'imagenet').parent != tmp_path
  (tmp_path / VGG16).touch()
  assert _find('vgg16', 1, 224, 'imagenet') == tmp_path / VGG16
  assert len(shop.calls) == 1
  (tmp_path / 'resnet20_cifar10.safetensors').touch()
  found = _find('resnet20', 1, 32, 'cifar10')
  assert found.parent == tmp_path
  monkeypatch.setenv(published.WEIGHTS_DIR, str(tmp_path / 'absent'))
  with pytest.raises(UserError, match='no folder'):
    _find('vgg16', 1, 224, 'imagenet')


@pytest.mark.parametrize(
  'name, width, image_size, message',
  [
    ('mobilenet', 0.3, 128, '0.25, 0.5, 0.75, 1.0'),
    ('mobilenet', 0.5, 100, '128, 160, 192, 224'),
    ('vgg16', 1, 64, '224 pixels'),
    ('resnet50', 0.5, 224, 'width 1'),
    ('vgg11', 1, 224, 'some of mobilenet, vgg16'),
    ('resnext50', 1, 224, r'torch\.load\("resnext50_32x4d\.pth"'),
    ('resnet20', 1, 32, 'mobilenet, .*not of resnet20; ask for cifar10 or'),
    ('resnet44', 0.5, 32, 'width 1;'),
    ('resnet56', 1, 32, r'"resnet56_cifar10\.safetensors".*WEIGHTS_DIR'),
    ('vgg16', 1, 32, 'of resnet20, .*not of vgg16; ask for imagenet or'),
    ('vgg11', 1, 32, 'of resnet20, .*not of vgg11; take one of these'),
  ],
)
def test_what_is_not_published(name, width, image_size, message, shop):
  where = 'cifar10' if image_size == 32 and name != 'resnet20' else 'imagenet'
  with pytest.raises(UserError, match=message):
    _find(name, width, image_size, where)
  assert not shop.calls


def test_weights_of_the_published_stem_are_refused_for_another_one(tmp_path):
  _, variables = _variables('mobilenet', 0.0625, 32)
  network, file = parse_network('mobilenet:0.0625'), tmp_path / 'w.npz'
  np.savez(file, **{'conv_preds/bias': np.zeros(3)})
  with pytest.raises(UserError, match='stride 1; let it enlarge.*0.0625:64'):
    load_classifier(network, 32, file)
  # Weights of our own were trained with the stem that they are read for.
  native.write_variables(file, variables)
  _, classifier = load_classifier(network, 32, file)
  chex.assert_trees_all_equal(classifier.variables, variables)


def test_files_without_a_classifier_are_named(tmp_path):
  np.savez(tmp_path / 'digits.npz', images=np.zeros(3), labels=np.zeros(3))
  with pytest.raises(UserError, match='digits.npz does not hold'):
    _num_classes(tmp_path / 'digits.npz')


def test_classes_that_are_not_those_of_the_weights_are_told(tmp_path):
  path = tmp_path / 'resnet20_cifar10.safetensors'
  names = published._CIFAR_CLASSES
  published.check_classes(path, 10, names, 'cifar10')
  published.check_classes(tmp_path / 'own.npz', 10, '0123456789', 'digits')
  with pytest.warns(DoubtWarning, match='airplane, .*truck.*digits.* 0, 1'):
    published.check_classes(path, 10, '0123456789', 'digits')
  with pytest.raises(UserError, match='10 classes, but two has 2'):
    published.check_classes(path, 10, names[:2], 'two')
