"""The paper's variant on generated pictures, and features too large to keep.

Networks are narrow and pictures few; size of the pictures, splits of the
networks, kinds of features and the code are those of the paper's variant.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.connection import features, plan
from experiments.connection.config import Config
from jaxadv import models
from jaxadv.classifier import from_linen
from jaxadv.data.fake import generated_pictures
from jaxadv.detectors.backbone import Design, prefix_features
from jaxadv.models.weights import native
from jaxadv.storage import read_npz
from tests.experiments.conftest import TINY

SIZE = 16
PAPER = (
  '--exp=unseen_transfer',
  '--variant=paper',
  '--num_pictures=20',
  '--heldout_pictures=0',
  '--natural_dataset=',
  '--attacks=fgsm,ni_plus',
  '--detector_epochs=1',
  '--num_seeds=1',
  '--batch_size=20',
  # One detector after the other.
  '--feature_memory=0.0001',
)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  """Pictures as large as the paper's, of two classes, in a file."""
  path = tmp_path_factory.mktemp('pictures') / 'generated.npz'
  found = generated_pictures(150, 224, num_classes=2)
  np.savez(path, images=found.images, labels=found.labels)
  return path


def write_weights(path, backbone, size):
  """Writes weights for two classes, whose statistics are not those of none."""
  module = models.build(backbone, num_classes=2, width=0.05, image_size=size)
  drawn = models.init_variables(jax.random.key(0), module, size)
  stats = jax.tree.map(lambda leaf: leaf + 0.1, drawn.get('batch_stats', {}))
  native.write_variables(path, {**drawn, 'batch_stats': stats})


@pytest.mark.slow
@pytest.mark.parametrize(
  'backbone, size',
  [
    ('mobilenet', 224),
    ('vgg16', 224),
    ('densenet121', 224),
    ('inceptionv3', 299),
    ('xception', 299),
  ],
)
def test_paper_variant_trains_its_first_steps(
  run, pictures, tmp_path, backbone, size
):
  """Through attacks, detectors and report; the victim is the backbone."""
  network = f'{backbone}:0.05:{size}'
  weights = tmp_path / 'weights.npz'
  write_weights(weights, backbone, size)
  code = run(
    *PAPER,
    f'--dataset={pictures}',
    f'--weights={network}={weights}',
    f'--victim={network}',
    f'--backbones={network}',
    f'--workdir={tmp_path / "run"}',
  )
  assert code == 0
  found = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert found['config']['feature_dtype'] == 'bfloat16'
  assert found['config']['image_size'] == 224
  [entry] = (tmp_path / 'cache' / 'detectors').iterdir()
  history = read_npz(entry / 'history.npz')
  # Both kinds and two controls, each after one epoch.
  assert history['train_loss'].shape == (1, 4)
  assert np.isfinite(history['train_loss']).all()
  variables = read_npz(entry / 'detectors.npz')
  assert {leaf.dtype.name for leaf in variables.values()} == {'float32'}


def narrow(name='vgg11', size=SIZE):
  module = models.build(
    name, num_classes=2, width=1 / 16, image_size=size, batch_norm=True
  )
  variables = models.init_variables(jax.random.key(1), module, size)
  return Design(module, 'block3', 'block5'), from_linen(module, variables)


@pytest.fixture(scope='module')
def sets():
  found = generated_pictures(36, SIZE).images
  return [found[:12], found[12:24], found[24:]]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_features_are_the_same_kept_or_not(sets, dtype):
  design, classifier = narrow()
  make = lambda limit: features.pool(
    design, classifier, sets, dtype=dtype, limit=limit, batch_size=5
  )
  needed = 36 * features.num_bytes(design, classifier, SIZE, dtype)
  kept, computed = make(needed), make(needed - 1)
  assert kept.whole is not None and computed.whole is None
  assert kept.whole.nbytes == needed
  for rows in (np.arange(36), np.array([30, 2, 2, 17, 5, 35, 0]), [3]):
    rows = np.asarray(rows)
    wanted, found = kept.take(rows), computed.take(rows)
    assert found.dtype == wanted.dtype == dtype
    np.testing.assert_array_equal(found, wanted)
  images = np.concatenate(sets).astype(np.float32) / 255
  direct = prefix_features(design, classifier, jnp.asarray(images))
  tolerance = 1e-5 if dtype == 'float32' else 1e-2
  np.testing.assert_allclose(
    kept.whole.astype(np.float32),
    direct,
    rtol=tolerance,
    atol=tolerance * float(jnp.abs(direct).max()),
  )


def without_detectors(finished, folder):
  shutil.copytree(
    finished.parent / 'cache',
    folder / 'cache',
    ignore=shutil.ignore_patterns('detectors'),
  )


def scores(folder):
  return read_npz(folder / 'cells' / 'vgg11-0.125-seed0.npz')['scores']


def test_training_one_after_the_other_changes_no_bit(finished, run, tmp_path):
  without_detectors(finished, tmp_path)
  command = ('--exp=unseen_transfer', *TINY, f'--workdir={tmp_path / "run"}')
  assert run(*command, '--feature_memory=0.000001') == 0
  np.testing.assert_array_equal(scores(tmp_path / 'run'), scores(finished))


def test_plan_of_the_paper_variant_tells_memory(run, pictures, capsys):
  # Published weights in a file; nothing reads them.
  command = (
    *PAPER,
    '--plan',
    f'--dataset={pictures}',
    '--backbones=mobilenet:0.05:224',
    f'--weights=mobilenet:0.05:224={pictures}',
  )
  found = {}
  for limit in ('1', '0.0001'):
    assert run(*command, f'--feature_memory={limit}') == 0
    found[limit] = capsys.readouterr().out
    # Of what is published, no training is planned.
    assert '  mobilenet:0.05:224 yes' not in found[limit]
    assert '  mobilenet:0.05:224 no' not in found[limit]
    assert '  victim             no' in found[limit]
  # 4 sets of 20 pictures, 28x28 cells of 12 channels, 2 bytes each.
  assert '1.4 MiB in bfloat16' in found['1']
  assert 'one detector after the other' not in found['1']
  assert 'one detector after the other, 0.4 MiB' in found['0.0001']


def test_planned_parameters_are_those_of_the_detectors(finished):
  values = dict(text.lstrip('-').split('=') for text in TINY)
  config = Config(image_size=int(values['image_size']))
  [file, *_] = (finished.parent / 'cache' / 'detectors').glob('*/detectors.npz')
  sizes = [leaf[0].size for leaf in read_npz(file).values()]
  needs = plan._needs(config, values['backbones'])
  assert needs.parameters == sum(sizes)


def test_bfloat16_features_give_close_scores(finished, run, tmp_path):
  without_detectors(finished, tmp_path)
  command = ('--exp=unseen_transfer', *TINY, f'--workdir={tmp_path / "run"}')
  assert run(*command, '--feature_dtype=bfloat16', '--num_seeds=1') == 0
  found, wanted = scores(tmp_path / 'run'), scores(finished)
  assert not np.array_equal(found, wanted)
  assert np.abs(found - wanted).max() < 0.1 * np.std(wanted)
