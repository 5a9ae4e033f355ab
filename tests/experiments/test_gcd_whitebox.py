"""Attacks that know the detectors: the rules, and the experiment."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.gcd import gcd_whitebox, white_box
from experiments.gcd.config import get_config
from experiments.gcd.white_box import (
  ACTIVE_DETECTORS,
  AttackRun,
  DetectorScore,
  Judged,
  WhiteBox,
)
from experiments.gcd.white_outcomes import (
  Outcome,
  Outcomes,
  better,
  budget_steps,
  masked,
  nested,
  rate_rows,
)
from jaxadv.attacks import ddn, make, pgd
from jaxadv.classifier import from_function
from jaxadv.data.sources import Pictures
from jaxadv.errors import UserError
from jaxadv.metrics.estimates import Estimate
from jaxadv.types import Detector, picture_keys

# The logits of DET_IS and DET_org of four pictures.
LOGITS = np.array([[-2.0, 1.0, -3.0, -1.0], [-1.0, -2.0, 2.0, 3.0]])


@pytest.mark.parametrize(
  ('active', 'expected'),
  [
    ('no detector', [False, False, False, False]),
    ('DET_IS', [False, True, False, False]),
    ('DET_org', [False, False, True, True]),
    # The one farther from 0 decides.
    ('GCD', [False, False, False, True]),
  ],
)
def test_a_guard_flags_by_its_own_rule(active, expected):
  np.testing.assert_array_equal(white_box.flagged(active, LOGITS), expected)


def test_success_is_a_changed_label_that_is_not_flagged():
  labels, targets = np.zeros(4, int), np.full(4, 2)
  found = Judged(np.array([1, 2, 0, 2]), LOGITS)
  np.testing.assert_array_equal(
    white_box.succeeded(found, 'GCD', labels, None), [True, True, False, False]
  )
  np.testing.assert_array_equal(
    white_box.succeeded(found, 'GCD', labels, targets),
    [False, True, False, False],
  )
  np.testing.assert_array_equal(
    white_box.succeeded(found, 'no detector', labels, targets),
    [False, True, False, True],
  )


def test_budget_curve_counts_successes_that_are_small_enough():
  sizes = np.array([0.5, 1.0, 2.0, 0.1])
  success = np.array([True, True, True, False])
  counts = white_box.budget_curve(sizes, success, np.array([0, 0.5, 1.5, 9]))
  np.testing.assert_array_equal(counts, [0, 1, 2, 3])


def outcomes_by_training(training):
  training = np.array(training)
  empty = dict(single={}, adaptive={}, oblivious={}, plain={}, pipeline={})
  sources = np.arange(len(training))
  return Outcomes(**empty, sources=sources, training=training)


def test_medians_are_paired_and_known_of_each_training():
  outcomes = outcomes_by_training(np.arange(21) % 2)
  sizes = np.linspace(1, 2, 21)
  rows = sizes < 1.99
  plain, double = (outcomes.median(f * sizes, rows) for f in (1, 2))
  assert (plain.value, double.value) == (1.475, 2.95)
  np.testing.assert_array_equal(double.draws, 2 * plain.draws)
  assert plain.draws.std() > 0
  assert plain.trainings == pytest.approx((1.45, 1.5)) and plain.apart


def test_a_rate_is_the_mean_of_the_trainings_each_on_its_pictures():
  outcomes = outcomes_by_training([0, 1, 2, 0, 1, 2])
  rate = outcomes.rate(np.array([1, 0, 1, 1, 0, 0], bool), paper=3.0)
  assert rate.trainings == (100.0, 0.0, 50.0) and rate.apart
  assert (rate.value, rate.paper) == (50.0, 3.0)
  # Only the third training's pictures differ among themselves.
  assert set(rate.draws.round(3)) == {33.333, 50.0, 66.667}


def test_an_interval_draws_on_rows_of_the_same_guard_alone():
  outcomes = outcomes_by_training(np.arange(60) % 3)
  # One training of DET_IS is got past on each picture, the others on none.
  rates = {
    'GCD': outcomes.training < 9,
    'DET_IS': outcomes.training == 0,
  }
  rows = {
    guards: rate_rows(outcomes, [({'guard': g}, rates[g]) for g in guards])
    for guards in [('GCD',), ('DET_IS',), ('GCD', 'DET_IS')]
  }
  assert rows['GCD', 'DET_IS'] == rows['GCD',] + rows['DET_IS',]
  assert rows['GCD',][0].ci_low > 90 and rows['DET_IS',][0].ci_low == 0


def test_intervals_of_ratios_are_those_of_logarithms():
  """A training that needs ten times the change says nothing below 0."""
  draws = np.random.default_rng(0).normal(3, 0.1, 1000)
  wide = Estimate(3.0, draws, (1.0, 3.0, 9.0), paper=13.0)
  keys = {'role': 'ratio', 'guard': 'GCD / no detector'}
  (row,) = gcd_whitebox._rows_of('ratio', [(keys, wide, 50)])
  assert row.value == pytest.approx(3) and row.paper == pytest.approx(13)
  assert 0 < row.ci_low < 1 < 9 < row.ci_high
  assert row.ci_low * row.ci_high == pytest.approx(9, rel=0.02)


def outcome(success, size):
  success = np.array(success, bool)
  return Outcome(success, success, np.broadcast_to(size, success.shape))


def test_a_gradient_that_does_not_beat_the_plain_one_may_be_masked():
  better, worse = outcome([1, 1], 1.0), outcome([1, 0], 1.0)
  assert masked(worse, better, sized=True)
  assert not masked(better, worse, sized=True)
  assert not masked(better, better, sized=False)  # Nothing is left to gain.
  assert masked(worse, worse, sized=False)
  assert masked(better, better, sized=True)
  assert not masked(better, outcome([1, 1], 2.0), sized=True)


def test_the_better_of_two_attacks_is_the_success_or_the_smaller():
  first = outcome([1, 1, 0, 0], np.array([1.0, 3.0, 1.0, 5.0]))
  second = outcome([1, 1, 1, 0], np.array([2.0, 2.0, 2.0, 6.0]))
  kept = better(first, second)
  np.testing.assert_array_equal(kept.success, [1, 1, 1, 0])
  np.testing.assert_array_equal(kept.l2[:3], [1, 2, 2])


def test_attacks_that_find_too_little_are_named():
  config = get_config()
  all_steps, half = AttackRun('GCD'), AttackRun('GCD', divisor=2)
  hits = lambda count: outcome(np.arange(50) < count, 1.0)
  single = {(attack, all_steps): hits(48) for attack in config.attack_names} | {
    ('carlini_wagner', all_steps): hits(46),  # Four points behind DDN.
    ('carlini_wagner_t', all_steps): hits(47),
    ('pgd_t', half): hits(46),
    ('ddn_t', half): outcome(np.arange(50) < 48, 1.1),
  }
  oblivious = {(attack, all_steps): hits(0) for attack in config.attack_names}
  oblivious['fgsm', all_steps] = hits(49)
  found = outcomes_by_training(np.arange(50) % 2)
  found = found._replace(single=single, oblivious=oblivious)
  inputs = SimpleNamespace(config=config)
  slow = gcd_whitebox.lagging(inputs, found, 'GCD')
  assert set(slow) == {'carlini_wagner', 'pgd_t', 'fgsm'}
  assert '46 of 50 pictures, DDN-U on 48' in slow['carlini_wagner']
  assert 'from 100 to 200 steps' in slow['pgd_t']
  assert gcd_whitebox.saved(found, 'ddn_t') == pytest.approx(100 / 11)
  assert gcd_whitebox.saved(found, 'pgd_t') == 0
  single['carlini_wagner', all_steps] = outcome([1] * 50, 1.2)
  single['carlini_wagner_t', all_steps] = outcome([1] * 50, 1.09)
  wasteful = lambda attack: gcd_whitebox.wasteful(found, attack, 'GCD')
  assert [
    wasteful(a) for a in ('carlini_wagner', 'carlini_wagner_t', 'ddn')
  ] == [True, False, False]


def test_a_small_ball_counts_in_the_larger_ones_around_it():
  whole, half, quarter = (AttackRun('GCD', share) for share in (1.0, 0.5, 0.25))
  single = {
    ('pgd', whole): outcome([0, 0, 1, 0], 4.0),
    ('pgd', half): outcome([0, 1, 1, 0], 2.0),
    ('pgd', quarter): outcome([1, 0, 0, 0], 1.0),
    ('pgd', AttackRun('DET_IS')): outcome([0, 0, 0, 1], 4.0),
    ('ddn', whole): outcome([0, 0, 0, 1], 4.0),
  }
  assert budget_steps(single) == [(quarter, half), (half, whole)]
  found = nested(single)
  np.testing.assert_array_equal(found['pgd', quarter].success, [1, 0, 0, 0])
  np.testing.assert_array_equal(found['pgd', half].success, [1, 1, 1, 0])
  np.testing.assert_array_equal(found['pgd', whole].success, [1, 1, 1, 0])
  np.testing.assert_array_equal(found['pgd', whole].l2, [1, 2, 2, 4])
  for other in [('pgd', AttackRun('DET_IS')), ('ddn', whole)]:
    np.testing.assert_array_equal(found[other].success, [0, 0, 0, 1])


def test_pictures_are_dealt_to_trainings_quiet_ones_first():
  unflagged_when_clean = np.array(
    [[0, 1, 1, 1, 0, 1, 1, 1], [1, 0, 1, 0, 0, 1, 1, 1]], bool
  )
  # Even rows are the first training's, odd ones the second's.
  np.testing.assert_array_equal(
    white_box.dealt(unflagged_when_clean, 5), [2, 5, 6, 7]
  )
  np.testing.assert_array_equal(
    white_box.dealt(unflagged_when_clean, 100), [2, 5, 6, 7, 0, 1, 4, 3]
  )


SHAPE = (2, 2, 1)
CONFIG = dataclasses.replace(
  get_config(),
  white_attacks=('pgd:num_steps=40', 'ddn:num_steps=40'),
  betas=('10',),
)


def linear(axis):
  def logits(keys, classifier, state, images):
    del keys, classifier
    return state * (images[:, axis, 0, 0] - 0.5)

  return Detector(lambda *_: None, logits)


# DET_IS flags whatever has the wrong label, DET_org looks elsewhere.
LINEAR = (linear(0), linear(1))


def linear_guard(weight=1.0, summed=False, detectors=LINEAR):
  """A victim whose label is the sign of a pixel, two linear detectors."""
  classifier = from_function(
    lambda scale, images: (
      scale
      * jnp.stack([0.5 - images[:, 0, 0, 0], images[:, 0, 0, 0] - 0.5], axis=-1)
    ),
    jnp.float32(4.0),
  )
  return DetectorScore(
    classifier=classifier,
    states=(jnp.float32(weight), jnp.float32(3.0)),
    temperatures=jnp.array([1.0, 1.0]),
    used=jnp.ones(2, bool),
    summed=jnp.asarray(summed),
    detectors=detectors,
  )


def white_of(*guards, n):
  images = np.zeros((n, *SHAPE), np.uint8)
  pictures = Pictures(
    images, np.zeros(n, np.int32), np.arange(n), ('a', 'b'), '', ''
  )
  nothing = np.zeros(n, np.int32), np.ones(n, bool), {}, {}
  return WhiteBox(guards, pictures, *nothing)


@pytest.mark.parametrize('summed', [False, True])
@pytest.mark.parametrize('active', ACTIVE_DETECTORS)
def test_the_score_has_the_sign_of_the_rule_and_an_objectives_slope(
  active, summed
):
  guard = linear_guard(summed=summed)
  images = jax.random.uniform(jax.random.key(0), (6, *SHAPE))
  images = images.at[0, :, 0, 0].set(jnp.array([0.8, 0.4]))  # They tie.
  logits = np.asarray(guard.logits(images))
  used = np.array(ACTIVE_DETECTORS[active])
  guard = guard.replace(used=jnp.array(used))
  np.testing.assert_array_equal(
    np.asarray(guard(images)) > 0, white_box.flagged(active, logits)
  )
  gradient = jax.grad(lambda x: jnp.sum(guard(x)))(images)[1:, :, 0, 0]
  slopes = np.array([[1.0, 0.0], [0.0, 3.0]])
  shown = np.where(used[:, None], logits, -np.inf)[:, 1:]
  expected = slopes[shown.argmax(axis=0)] * any(used)
  if summed:
    expected = np.broadcast_to(used @ slopes, expected.shape)
  np.testing.assert_allclose(gradient, expected)


IMAGES = (
  jnp.full((3, *SHAPE), 0.45)
  .at[:, 1]
  .set(jnp.linspace(0.35, 0.45, 3)[:, None, None])
)


def got_past(white, result, active):
  found = white_box.judged(white, np.asarray(result.images))
  return white_box.succeeded(found, active, white.pictures.labels, None)


def run_informed(attack, guards, images, forms):
  """Gives the result of an attack for every form: one program for all."""
  keys = picture_keys(jax.random.key(0), jnp.arange(len(images)))

  @jax.jit
  def run(used):
    attacked = white_box.adaptive_attack(CONFIG, attack, used)
    aims = jnp.full(len(images), int(attacked.targeted))
    return attacked(keys, white_box.guarded_victim(guards), images, aims)

  return {active: run(jnp.array(ACTIVE_DETECTORS[active])) for active in forms}


@pytest.mark.parametrize('attack', ['pgd', 'ddn', 'deepfool'])
def test_success_is_had_only_where_a_guard_leaves_room(attack):
  guard = linear_guard()
  possible = {'no detector': True, 'DET_IS': False, 'DET_org': True}
  results = run_informed(attack, [guard], IMAGES, possible)
  white = white_of(guard, n=3)
  for active, result in results.items():
    success = got_past(white, result, active)
    assert success.all() if possible[active] else not success.any(), active


@pytest.mark.parametrize('attack', ['fgsm', 'ddn'])
def test_the_sum_is_followed_where_the_larger_logit_leads_nowhere(attack):
  def certain(keys, classifier, state, images):
    return state * jnp.ones(len(images))

  # DET_IS is always sure, so only DET_org can be made to outvote it.
  detectors = (Detector(lambda *_: None, certain), linear(1))
  guard = linear_guard(weight=0.3, detectors=detectors)
  images = jnp.full((3, *SHAPE), 0.45)
  results = run_informed(attack, [guard], images, ['DET_IS', 'GCD'])
  white = white_of(guard, n=3)
  assert got_past(white, results['GCD'], 'GCD').all()
  assert not got_past(white, results['DET_IS'], 'DET_IS').any()


def test_a_picture_meets_the_training_that_its_number_names():
  # The second training's DET_IS flags the right label.
  guards = linear_guard(weight=1.0), linear_guard(weight=-1.0)
  images = jnp.concatenate([IMAGES, IMAGES])
  result = run_informed('pgd', guards, images, ['DET_IS'])['DET_IS']
  np.testing.assert_array_equal(result.success, [0, 1] * 3)
  np.testing.assert_array_equal(
    got_past(white_of(*guards, n=6), result, 'DET_IS'), [0, 1] * 3
  )


@pytest.mark.filterwarnings('ignore:num_steps times step_size')
@pytest.mark.parametrize(
  'make', [lambda n: pgd(0.5, 0.01, n, random_start=False), ddn]
)
def test_a_shortened_attack_is_one_of_fewer_steps(make):
  classifier = linear_guard().classifier
  keys = picture_keys(jax.random.key(0), jnp.arange(3))
  labels = jnp.zeros(3, jnp.int32)
  run = lambda attack: attack(keys, classifier, IMAGES, labels)
  short, own, whole = (
    run(attack)
    for attack in (white_box.shortened(make(16), 2), make(8), make(16))
  )
  np.testing.assert_array_equal(short.images, own.images)
  assert np.any(np.asarray(short.images != whole.images))


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
  assert len(white) == len(attacks) * len(ACTIVE_DETECTORS)
  assert all(row['n'] for row in white)
  free = [row['value'] for row in white if row['guard'] == 'no detector']
  assert max(free) > 0
  assert len(results['claims']) == 3
  budgets, _ = rows(folder, role='budget')
  assert {row['epsilon'] for row in budgets} == {'0.075', '0.15', '0.3'}
  assert (
    rows(folder, role='second_order')[0] and rows(folder, role='pipeline')[0]
  )
  for figure in ('budget-linf', 'steps'):
    assert (folder / 'figures' / f'{figure}.png').exists()
  # Few pictures and hardly trained detectors bear no verdict.
  assert {claim['verdict'] for claim in results['claims']} == {'not tested'}


def test_cells_are_the_attacks_and_the_probes():
  config = get_config()
  names = [cell.name for cell in gcd_whitebox.cells(config)]
  assert names == [*config.attack_names, 'second_order', 'pipeline']


def test_every_training_defends_a_picture():
  with pytest.raises(UserError, match='--white_pictures is 2.*--num_seeds=3'):
    dataclasses.replace(get_config(), white_pictures=2)


def test_the_plain_attack_is_the_one_that_was_given():
  given = 'pgd:epsilon=0.2:random_start=false:early_stop=false'
  config = dataclasses.replace(CONFIG, white_attacks=(given,))
  images = jax.random.uniform(jax.random.key(0), (6, *SHAPE))
  bright = images[:, 0, 0, 0] > 0.5
  rows = (
    picture_keys(jax.random.key(1), np.arange(6)),
    linear_guard().classifier,
  )
  run = lambda attack: jax.jit(attack)(*rows, images, bright.astype(int)).images
  found = run(white_box.plain_attack(config, 'pgd', 0.5))
  wanted = make(given, epsilon=0.1, step_size=0.01, num_steps=200)
  np.testing.assert_allclose(found, run(wanted), atol=1e-6)
  usual = run(white_box.plain_attack(CONFIG, 'pgd', 0.5))
  assert np.abs(found - usual).max() > 1e-3
