"""Attacks that know the detectors: the rules, and the experiment."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.gcd import gcd_whitebox
from experiments.gcd.protocol import adaptive
from experiments.gcd.protocol.adaptive import FORMS, Guard, Judged, Turn
from experiments.gcd.protocol.outcomes import (
  Outcome,
  budget_steps,
  masked,
  nested,
  paired_medians,
)
from experiments.gcd.protocol.setting import get_config
from jaxadv.classifier import from_function
from jaxadv.types import Detector, picture_keys

# The logits of DET_IS and DET_org of four pictures.
LOGITS = np.array([[-2.0, 1.0, -3.0, -1.0], [-1.0, -2.0, 2.0, 3.0]])


@pytest.mark.parametrize(
  ('form', 'expected'),
  [
    ('no detector', [False, False, False, False]),
    ('DET_IS', [False, True, False, False]),
    ('DET_org', [False, False, True, True]),
    # The one farther from 0 decides.
    ('GCD', [False, False, False, True]),
  ],
)
def test_a_guard_flags_by_its_own_rule(form, expected):
  np.testing.assert_array_equal(adaptive.flagged(form, LOGITS), expected)


def test_success_is_a_changed_label_that_is_not_flagged():
  labels, targets = np.zeros(4, int), np.full(4, 2)
  found = Judged(np.array([1, 2, 0, 2]), LOGITS)
  np.testing.assert_array_equal(
    adaptive.succeeded(found, 'GCD', labels, None), [True, True, False, False]
  )
  np.testing.assert_array_equal(
    adaptive.succeeded(found, 'GCD', labels, targets),
    [False, True, False, False],
  )
  np.testing.assert_array_equal(
    adaptive.succeeded(found, 'no detector', labels, targets),
    [False, True, False, True],
  )


def test_budget_curve_counts_successes_that_are_small_enough():
  sizes = np.array([0.5, 1.0, 2.0, 0.1])
  success = np.array([True, True, True, False])
  counts = adaptive.budget_curve(sizes, success, np.array([0, 0.5, 1.5, 9]))
  np.testing.assert_array_equal(counts, [0, 1, 2, 3])


def test_medians_are_paired():
  sizes = np.linspace(1, 2, 21)
  plain, double = paired_medians([sizes, 2 * sizes])
  assert (plain.value, double.value) == (1.5, 3.0)
  np.testing.assert_array_equal(double.draws, 2 * plain.draws)
  assert plain.draws.std() > 0


def outcome(success, size):
  success = np.array(success, bool)
  return Outcome(success, success, np.full(len(success), size))


def test_a_gradient_that_does_not_beat_the_plain_one_may_be_masked():
  better, worse = outcome([1, 1], 1.0), outcome([1, 0], 1.0)
  assert masked(worse, better, sized=True)
  assert not masked(better, worse, sized=True)
  assert not masked(better, better, sized=False)  # Nothing is left to gain.
  assert masked(worse, worse, sized=False)
  assert masked(better, better, sized=True)
  assert not masked(better, outcome([1, 1], 2.0), sized=True)


def test_a_small_ball_counts_in_the_larger_ones_around_it():
  whole, half, quarter = (Turn('GCD', share) for share in (1.0, 0.5, 0.25))
  single = {
    ('pgd', whole): outcome([0, 0, 1, 0], 4.0),
    ('pgd', half): outcome([0, 1, 1, 0], 2.0),
    ('pgd', quarter): outcome([1, 0, 0, 0], 1.0),
    ('pgd', Turn('DET_IS')): outcome([0, 0, 0, 1], 4.0),
    ('ddn', whole): outcome([0, 0, 0, 1], 4.0),
  }
  assert budget_steps(single) == [(quarter, half), (half, whole)]
  found = nested(single)
  np.testing.assert_array_equal(found['pgd', quarter].success, [1, 0, 0, 0])
  np.testing.assert_array_equal(found['pgd', half].success, [1, 1, 1, 0])
  np.testing.assert_array_equal(found['pgd', whole].success, [1, 1, 1, 0])
  np.testing.assert_array_equal(found['pgd', whole].l2, [1, 2, 2, 4])
  for other in [('pgd', Turn('DET_IS')), ('ddn', whole)]:
    np.testing.assert_array_equal(found[other].success, [0, 0, 0, 1])


SHAPE = (2, 2, 1)


def linear_guard(**options):
  """A victim whose label is the sign of the mean, two linear detectors."""

  def score(axis):
    def logits(keys, classifier, state, images):
      del keys, classifier
      return state * (images[:, axis, 0, 0] - 0.5)

    return Detector(lambda *_: None, logits)

  classifier = from_function(
    lambda scale, images: (
      scale
      * jnp.stack([0.5 - images[:, 0, 0, 0], images[:, 0, 0, 0] - 0.5], axis=-1)
    ),
    jnp.float32(4.0),
  )
  return Guard(
    classifier=classifier,
    states=(jnp.float32(1.0), jnp.float32(3.0)),
    temperatures=jnp.array([1.0, 1.0]),
    used=jnp.ones(2, bool),
    detectors=(score(0), score(1)),
    **options,
  )


@pytest.mark.parametrize('form', FORMS)
def test_the_score_has_the_value_of_the_rule_and_the_slope_of_the_larger(form):
  guard = linear_guard()
  images = jax.random.uniform(jax.random.key(0), (6, *SHAPE))
  logits = np.asarray(guard.logits(images))
  guard = guard.replace(used=jnp.array(FORMS[form]))
  np.testing.assert_array_equal(
    np.asarray(guard(images)) > 0, adaptive.flagged(form, logits)
  )
  gradient = jax.grad(lambda x: jnp.sum(guard(x)))(images)[:, :, 0, 0]
  slopes = np.array([[1.0, 0.0], [0.0, 3.0]])
  shown = np.where(np.array(FORMS[form])[:, None], logits, -np.inf)
  expected = slopes[shown.argmax(axis=0)] * any(FORMS[form])
  np.testing.assert_allclose(gradient, expected)


@pytest.mark.parametrize('attack', ['pgd', 'pgd_t', 'ddn', 'deepfool'])
def test_success_is_had_only_where_a_guard_leaves_room(attack):
  # DET_IS flags whatever has the wrong label; DET_org looks elsewhere.
  guard = linear_guard()
  config = get_config()
  images = (
    jnp.full((3, *SHAPE), 0.45)
    .at[:, 1]
    .set(jnp.linspace(0.35, 0.45, 3)[:, None, None])
  )
  labels = jnp.zeros(3, jnp.int32)
  keys = picture_keys(jax.random.key(0), jnp.arange(3))

  def run(used):
    attacked = adaptive.informed_attack(config, attack, used, 1.0)
    aims = labels + attacked.targeted
    return attacked(keys, adaptive.guarded_victim(guard), images, aims)

  run = jax.jit(run)
  for form, possible in {
    'no detector': True,
    'DET_IS': False,
    'DET_org': True,
  }.items():
    result = run(jnp.array(FORMS[form]))
    found = adaptive.judged(guard, np.asarray(result.images))
    success = adaptive.succeeded(found, form, np.zeros(3), None)
    assert success.all() if possible else not success.any(), form


def rows(folder, **keys):
  results = json.loads((folder / 'results.json').read_text())
  return [
    row for row in results['rows'] if keys.items() <= row.items()
  ], results


@pytest.mark.slow
def test_the_experiment_runs_to_its_report(gcd_run):
  # Detectors that leave clean pictures in peace; else nothing can be counted.
  attacks = ('pgd', 'ddn_t')
  learnt = (f'--attacks={",".join(attacks)}', '--detector_epochs=30')
  folder = gcd_run('gcd_whitebox', *learnt)
  white, results = rows(folder, role='white', judged='float')
  assert len(white) == len(attacks) * len(FORMS)
  assert all(row['n'] for row in white)
  free = [row['value'] for row in white if row['guard'] == 'no detector']
  assert max(free) > 0
  assert len(results['claims']) == 3
  budgets, _ = rows(folder, role='budget')
  assert {row['epsilon'] for row in budgets} == {'0.075', '0.15', '0.3'}
  assert (
    rows(folder, role='second_order')[0] and rows(folder, role='pipeline')[0]
  )
  assert (folder / 'figures' / 'budget-linf.png').exists()


def test_cells_are_the_attacks_and_the_probes():
  config = get_config()
  names = [cell.name for cell in gcd_whitebox.cells(config)]
  assert names == [*config.attacks, 'second_order', 'pipeline']
