"""Blackening salient pixels, from the command line to the report."""

import dataclasses

import numpy as np
import pytest

from experiments.gcd import config as config_module
from experiments.gcd import gcd_salient_pixels as salient
from jaxadv.errors import UserError
from jaxadv.metrics.estimates import Estimate
from jaxadv.storage import read_json


def test_a_run_leaves_a_report(gcd_run):
  folder = gcd_run('gcd_salient_pixels')
  rows = read_json(folder / 'results.json')['rows']
  left = {
    (row['pixels'], row['blackened'], row['attack']): row
    for row in rows
    if row.get('role') == 'float'
  }
  assert {attack for _, _, attack in left} == {'PGD-U', 'DFool-U'}
  assert left['none', '0 %', 'PGD-U']['value'] == 100
  for row in left.values():
    assert 0 <= row['ci_low'] <= row['value'] <= row['ci_high'] <= 100
  assert (folder / 'figures' / 'examples.png').stat().st_size > 1000


def test_the_largest_are_blackened():
  images = np.full((1, 4, 5, 1), 200, np.uint8)
  images = images / np.float32(255)
  size = np.zeros((1, 4, 5, 1), np.float32)
  size[0, 1, 2], size[0, 3, 0] = -3, 2
  pixels, blackened = salient.blacken(images, size, 0.1)
  assert np.argwhere(pixels[0]).tolist() == [[1, 2], [3, 0]]
  assert (blackened == 0).sum() == 2
  np.testing.assert_array_equal(blackened[..., 0] == 0, pixels)


def test_claims_follow_the_numbers():
  def estimate(value):
    return Estimate(value, np.linspace(value - 1, value + 1, 100))

  values = {
    'is': (60, 70),
    'org': (95, 90),
    'random': (90, 80),
    'lit': (60, 50),
  }
  left = {
    ('ddn', name, fraction): estimate(float(value))
    for name, pair in values.items()
    for fraction, value in zip(salient.FRACTIONS, pair, strict=True)
  }
  claims = salient.claims(left, ['ddn'], 100, {'is': [], 'org': ['it is weak']})
  assert [c.verdict for c in claims[4:]] == ['not tested'] * 4
  assert 'it is weak' in claims[4].note
  claims = salient.claims(left, ['ddn'], 100, {'is': [], 'org': []})
  verdicts = [c.verdict for c in claims]
  assert verdicts[:4] == ['held', 'held', 'cannot tell', 'held']
  assert verdicts[4:] == ['held', 'did not', 'did not', 'did not']


def test_targeted_attacks_alone_are_refused(tmp_path):
  config = dataclasses.replace(
    config_module.get_config(), attacks=('carlini_wagner_t',)
  )
  with pytest.raises(UserError, match='needs one or more of deepfool'):
    salient.run(config, str(tmp_path))
