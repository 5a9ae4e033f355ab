"""Recovery behind all defences, from the command line to the report."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gcd import gcd_recovery
from experiments.gcd.protocol import rivals, setting
from jaxadv.classifier import from_function
from jaxadv.defences.rectifier import guarded
from jaxadv.metrics.figures import Figure
from jaxadv.storage import read_json


def test_a_run_leaves_a_report(gcd_run):
  folder = gcd_run('gcd_recovery')
  rows = read_json(folder / 'results.json')['rows']
  found = {
    (row['defence'], row['attack']): row
    for row in rows
    if row.get('role') == 'recovery' and row['pictures'] == 'all'
  }
  assert {defence for defence, _ in found} == {*gcd_recovery.DEFENCES.values()}
  # Test pictures are those that the victim classifies correctly.
  assert found['F', 'Clean']['value'] == 100
  assert found['F', 'PGD-U']['value'] < 50
  assert found['PixelDefend', 'Clean']['n'] == 4
  for row in rows:
    if row.get('role') == 'recovery' and row['defence'] == 'F':
      assert row['pictures'] == 'all' or row['value'] == 0
  own = {row['defence'] for row in rows if row.get('role') == 'own'}
  assert own == {'AT_PGD', 'AT_DDN'}
  for name in ('recovery', 'examples'):
    assert (folder / 'figures' / f'{name}.png').stat().st_size > 1000


def test_labels_are_those_of_the_pipeline():
  logits = lambda images: images.reshape(len(images), -1)
  plain = from_function(logits)
  mended = from_function(lambda images, keys: -logits(images), stochastic=True)
  images = jax.random.uniform(jax.random.key(0), (8, 1, 3, 1))
  score = lambda images: images[:, 0, 0, 0] - 0.5
  whole = guarded(plain, mended, score)
  keys = jax.random.split(jax.random.key(1), 8)
  np.testing.assert_array_equal(
    gcd_recovery.guarded_labels(
      np.asarray(score(images)),
      np.asarray(mended(images, keys).argmax(-1)),
      np.asarray(plain(images).argmax(-1)),
    ),
    whole(images, keys).argmax(-1),
  )


def test_groups_leave_out_what_a_run_has_not():
  groups = gcd_recovery.groups_of(('clean', 'pgd', 'ddn', 'cw_t'))
  assert groups == {
    'clean': ['clean'],
    'Linf attacks': ['pgd'],
    'L2 attacks': ['ddn', 'cw_t'],
  }
  assert 'L2 attacks' not in gcd_recovery.groups_of(('clean', 'fgsm'))


def test_claims_compare_the_same_pictures():
  config = types.SimpleNamespace(attacks=('ddn',), purified_pictures=3)
  asked = []
  values = {
    'rectifier': 70,
    'pipeline': 80,
    'none': 0,
    'unmasked': 70,
    'tvm': 90,
    'pd': 80,
  }

  def accuracy(defence, kind, n=None):
    asked.append((defence, kind, n))
    value = 99.0 if kind == 'clean' else float(values.get(defence, 50))
    return Figure(value, np.linspace(value - 1, value + 1, 100))

  verdicts = {
    claim.claim: claim.verdict
    for claim in gcd_recovery.claims(accuracy, config)
  }
  assert list(verdicts.values()) == [
    'held',
    'cannot tell',
    'held',
    'cannot tell',
    'held',
    'held',
    'did not',
    'held',
    'held',
  ]
  assert ('pipeline', 'ddn', 3) in asked and ('pd', 'ddn', 3) in asked


def test_ddn_training_cuts_its_changes():
  config = setting.Config(hardened_steps=40)
  perturb = jax.jit(rivals.perturb_of(config, 'ddn'), static_argnums=1)
  # A classifier that only a change of size 2.5 can fool.
  classifier = from_function(
    lambda images: jnp.stack(
      [images.mean((1, 2, 3)), jnp.full(len(images), 0.9 - 2.5 / 8)], -1
    )
  )
  images = jnp.full((2, 8, 8, 1), 0.9)
  changed = perturb(
    jax.random.key(0), classifier, images, jnp.zeros(2, jnp.int32)
  )
  sizes = jnp.sqrt(((changed - images) ** 2).sum((1, 2, 3)))
  np.testing.assert_allclose(sizes, 2.4, rtol=1e-3)
