"""Backbones: sizes, stages, splitting, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import models
from jaxadv.classifier import from_linen
from jaxadv.errors import UserError
from jaxadv.models import pretrained

PUBLISHED = {
  'vgg11': 132_863_336,
  'vgg16': 138_357_544,
  'vgg19': 143_667_240,
  'mobilenet': 4_253_864,
  'densenet121': 8_062_504,
  'resnet18': 11_699_112,
  'resnet50': 25_636_712,
  'resnet152': 60_419_944,
  'resnext50': 25_097_128,
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_parameter_counts(name):
  module = models.build(name, num_classes=1000)
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
  )
  sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)]
  assert sum(sizes) == PUBLISHED[name]


@pytest.fixture(
  scope='module',
  params=[
    'vgg11',
    'mobilenet',
    pytest.param('densenet121', marks=pytest.mark.slow),
    pytest.param('resnet18', marks=pytest.mark.slow),
  ],
)
def network(request):
  backbone = models.BACKBONES[request.param]
  options = backbone.from_scratch
  if request.param == 'densenet121':  # compiles for a minute at full depth
    options = {'depths': (1, 8, 1, 1)}
  module = models.build(
    backbone.name, num_classes=3, width=0.1, image_size=32, **options
  )
  variables = models.init_variables(jax.random.key(0), module, 32)
  images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
  return backbone, module, variables, images


def test_running_in_parts_equals_running_at_once(network):
  backbone, module, variables, images = network
  prefix, suffix = models.split_variables(module, variables, backbone.split)

  @jax.jit
  def in_parts(images):
    x = module.apply(prefix, images, stop=backbone.split)
    maps = module.apply(suffix, x, start=backbone.split, stop=backbone.features)
    return maps, module.apply(suffix, maps, start=backbone.features)

  maps, logits = in_parts(images)
  assert maps.ndim == 4
  np.testing.assert_allclose(
    logits, jax.jit(module.apply)(variables, images), rtol=1e-5, atol=1e-5
  )
  both = jax.tree.leaves(prefix) + jax.tree.leaves(suffix)
  assert len(both) == len(jax.tree.leaves(variables))


def test_stages_are_layers_of_the_classifier(network):
  backbone, module, variables, images = network
  names = models.stage_names(module)
  assert backbone.split in names and backbone.saliency in names
  assert backbone.features == names[-2]
  found, stretch = jax.jit(
    lambda images: (
      from_linen(module, variables).features(images, names),
      module.apply(variables, images, stop=backbone.split),
    )
  )(images)
  np.testing.assert_allclose(found[backbone.split], stretch, rtol=1e-5)


def test_training_updates_statistics_and_inference_does_not(network):
  _, module, variables, images = network
  after, same = jax.jit(
    lambda images: [
      module.apply(variables, images, train, mutable=['batch_stats'])[1]
      for train in (True, False)
    ]
  )(images)
  moved, still = (
    jax.tree.map(
      lambda a, b: float(jnp.abs(a - b).max()),
      new['batch_stats'],
      variables['batch_stats'],
    )
    for new in (after, same)
  )
  assert min(jax.tree.leaves(moved)) > 0
  assert max(jax.tree.leaves(still)) == 0


def test_vgg_preprocessing_is_that_of_keras():
  image = jnp.array([1.0, 0.5, 0.0]).reshape(1, 1, 1, 3)
  np.testing.assert_allclose(
    models.caffe_preprocess(image).ravel(),
    [0 - 103.939, 127.5 - 116.779, 255 - 123.68],
    rtol=1e-5,
  )


def test_every_backbone_takes_its_smallest_size():
  modules = {}
  for name, backbone in models.BACKBONES.items():
    size = backbone.min_size
    module = models.build(name, num_classes=2, width=0.1, image_size=size)
    # Networks of a family shrink pictures alike, whatever their depth.
    modules.setdefault((type(module), size), module)
  for (_, size), module in modules.items():
    image = jnp.zeros((1, size, size, 3))
    shape = jax.eval_shape(
      lambda image, module=module: module.init_with_output(
        jax.random.key(0), image
      )[0],
      image,
    )
    assert shape.shape == (1, 2)


@pytest.mark.parametrize(
  'arguments, said',
  [
    (dict(name='vgg99'), 'vgg99.*vgg11, '),
    (dict(name='vgg16', image_size=8), '8x8.*16x16'),
    (dict(name='mobilenet', width=0.0), 'above 0'),
    (dict(name='mobilenet', num_classes=0), '1 or more'),
  ],
)
def test_impossible_networks_are_refused(arguments, said):
  with pytest.raises(UserError, match=said):
    models.build(**({'num_classes': 10} | arguments))


def test_unknown_stages_are_refused(network):
  backbone, module, variables, images = network
  with pytest.raises(UserError, match=f'block77.*{backbone.split}'):
    module.apply(variables, images, stop='block77')
  first, last = models.stage_names(module)[1:3]
  with pytest.raises(UserError, match=f'{last}.*comes after.*{first}'):
    module.apply(variables, images, start=last, stop=first)


def test_a_restricted_network_gives_the_logits_of_its_classes(network):
  _, module, variables, images = network
  classifier = from_linen(module, variables)
  smaller, restricted = pretrained.restricted(module, classifier, [2, 0])
  assert smaller.num_classes == 2
  found, whole = jax.jit(lambda x: (restricted(x), classifier(x)))(images)
  np.testing.assert_allclose(found, whole[:, np.array([2, 0])], rtol=1e-6)
