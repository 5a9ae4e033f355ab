"""Masking rates, from the command line to the report."""

import numpy as np
import pytest

from experiments.gcd import gcd_alpha, repair
from jaxadv.metrics.estimates import Estimate
from jaxadv.reports.verdicts import judge
from jaxadv.storage import read_json


@pytest.mark.slow
def test_a_run_leaves_a_report(gcd_run):
  folder = gcd_run('gcd_alpha')
  rows = read_json(folder / 'results.json')['rows']
  shares = {
    (row['reading'], row['alpha'], row['pictures'], row['metric']): row['value']
    for row in rows
    if row.get('role') == 'fraction'
  }
  for alpha in ('0.3', '0.7'):
    suspect = shares['fraction', alpha, 'attacked', gcd_alpha.SUSPECT]
    assert abs(suspect - 100 * float(alpha)) < 0.1
    replaced = shares['fraction', alpha, 'attacked', gcd_alpha.REPLACED]
    assert abs(replaced - suspect / 2) < 2
  threshold = [
    shares['threshold', alpha, 'attacked', gcd_alpha.SUSPECT]
    for alpha in ('0.3', '0.7')
  ]
  assert threshold[0] > threshold[1] > 0
  means = [row for row in rows if row.get('role') == 'mean']
  assert {row['goal'] for row in means} == {'untargeted', 'targeted'}
  # One unprotected, one not masked, and two rates in two readings.
  assert len(means) == 2 * 6
  assert (folder / 'figures' / 'alpha.png').stat().st_size > 1000


def estimate(value):
  return Estimate(value, np.linspace(value - 1, value + 1, 100))


def test_a_peak_lies_inside():
  def verdict(*values, tried=()):
    curve = [estimate(float(value)) for value in values]
    alphas = np.linspace(0, 1, len(values))
    inner = gcd_alpha.inner_peak(curve, tried or values, alphas)
    return judge('peaks', inner).verdict

  assert verdict(50, 80, 40) == 'held'
  assert verdict(50, 60, 70) == 'did not'
  assert verdict(50, 60, 60) == 'cannot tell'
  assert verdict(50, 60) == 'not tested'
  # Validation pictures pick the rate, whatever test pictures would.
  assert verdict(50, 80, 30, 40) == 'held'
  assert verdict(50, 80, 30, 40, tried=(0, 0.1, 0.2, 0)) == 'did not'


def test_the_printed_optimum_is_judged_as_well():
  places = [(mask, 'untargeted') for mask in ('fraction', 'threshold')]
  shares = (50.0, 80.0, 40.0)

  def last(weak, optimum):
    found = gcd_alpha.claims(
      dict.fromkeys(places, [estimate(share) for share in shares]),
      dict.fromkeys(places, shares),
      {'untargeted': estimate(70.0)},
      [0.1, 0.5, 0.9],
      100,
      weak,
      optimum,
    )
    return found[-1].verdict, found[-1].paper

  assert last([], {'untargeted': 0.55}) == ('held', 'held')
  assert last(['f_rec forgets'], {}) == ('not tested', '')


def test_a_detector_is_its_gradient():
  rng = np.random.default_rng(0)
  images = rng.random((3, 4, 4, 1), np.float32)
  weights = rng.normal(size=(4, 4, 1)).astype(np.float32)

  def score(images):
    return (images**2 * weights).sum((1, 2, 3))

  stand_in = repair.standing_in(2 * images * weights)
  for mask in repair.READINGS:
    np.testing.assert_array_equal(
      repair.rectifier.salient_pixels(stand_in, images, 0.4, mask_rule=mask),
      repair.rectifier.salient_pixels(score, images, 0.4, mask_rule=mask),
    )
