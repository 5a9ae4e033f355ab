"""Verdicts: Holm's correction, what cannot be tested, the paper's numbers."""

import numpy as np
import pytest

from jaxadv.metrics.estimates import Estimate
from jaxadv.reports import tables
from jaxadv.reports.verdicts import Comparison, holm, judge

NORMAL = np.random.default_rng(0).normal(size=20_000)


def compare(value, *, sigma=1.0, trainings=(0.0, 0.0), paper=None):
  return Comparison(
    f'difference of {value}',
    Estimate(
      value,
      value + sigma * NORMAL,
      tuple(value + t for t in trainings),
      paper=paper,
    ),
  )


def test_holm_equals_a_worked_example():
  # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2 and 0.04 x 1, which may not fall.
  found = holm([0.01, 0.04, 0.03, 0.005])
  assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])
  assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])


def test_one_of_many_differences_has_to_be_clearly_negative():
  # 2.2 deviations below 0 are enough for one (p = 0.028), not for ten.
  low, high = compare(-2.2), compare(5.0)
  assert judge('c', [low]).verdict == 'did not'
  assert judge('c', [low] + 9 * [high]).verdict == 'cannot tell'
  assert judge('c', [compare(-3.5)] + 9 * [high]).verdict == 'did not'


def test_held_asks_for_every_whole_interval():
  assert judge('c', [compare(2.2), compare(5.0)]).verdict == 'held'
  assert judge('c', [compare(1.5), compare(5.0)]).verdict == 'cannot tell'


def test_training_widens_what_a_verdict_rests_on():
  quiet = compare(3.0, trainings=(-0.1, 0.0, 0.1))
  loud = compare(3.0, trainings=(-3.0, 0.0, 3.0))
  assert judge('c', [quiet]).verdict == 'held'
  assert judge('c', [loud]).verdict == 'cannot tell'


@pytest.mark.parametrize(
  'comparisons, options, reason',
  [
    ([], {}, 'nothing to compare'),
    ([compare(5.0, trainings=(0.0,))], {}, 'trained once'),
    ([compare(5.0)], {'n': 99}, '99 test pictures'),
    ([compare(5.0)], {'unfit': ['pooled AUC of 71 is below 90']}, 'below 90'),
  ],
)
def test_a_setting_that_cannot_bear_a_claim_tests_nothing(
  comparisons, options, reason
):
  claim = judge('c', comparisons, **options)
  assert claim.verdict == 'not tested'
  assert reason in claim.note and reason in tables.sentence(claim)


def test_a_setting_that_favours_a_claim_may_only_refute_it():
  ask = lambda value: judge('c', [compare(value)], generous=['weak']).verdict
  assert [ask(5.0), ask(0.5), ask(-5.0)] == ['not tested'] * 2 + ['did not']


def test_a_setting_that_disfavours_a_claim_may_not_refute_it():
  ask = lambda value: judge('c', [compare(value)], harsh=['weak']).verdict
  assert [ask(5.0), ask(0.5), ask(-5.0)] == ['held'] + ['not tested'] * 2


def test_what_was_not_trained_needs_no_second_training():
  assert judge('c', [compare(5.0, trainings=())], n=100).verdict == 'held'


@pytest.mark.parametrize(
  'printed, verdict',
  [
    ((1.0, 2.0), 'held'),
    ((1.0, -0.1), 'did not'),
    ((1.0, 0.0), 'cannot tell'),
    ((None, 2.0), 'held'),
    ((None, None), ''),
  ],
)
def test_the_papers_numbers_go_by_the_same_rule(printed, verdict):
  claim = judge('c', [compare(5.0, paper=number) for number in printed])
  assert claim.paper == verdict
  said = "paper's own numbers" in tables.sentence(claim)
  assert said == bool(verdict)


def test_what_was_trained_once_stands_beside_the_verdict():
  claim = judge('c', [compare(5.0)], once=['PixelCNN++'])
  assert claim.verdict == 'held'
  assert 'PixelCNN++' in tables.sentence(claim)
