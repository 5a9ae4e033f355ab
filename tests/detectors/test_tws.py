"""TWS on linear classifiers, where every step can be counted beforehand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from jaxadv.classifier import from_function
from jaxadv.detectors import tws
from jaxadv.errors import UserError
from jaxadv.types import Batch, picture_keys

SHAPE = (4, 4, 1)
# Logits are 0 and the margin: 8 times the mean of the picture minus 0.5.
GAIN = 8.0
QUICK = {'radius': 0.5, 'targeted_cap': 6, 'untargeted_cap': 6}


def logits(gain, images):
  margin = gain * jnp.mean(images - 0.5, axis=(1, 2, 3))
  return jnp.stack([jnp.zeros_like(margin), margin], axis=-1)


CLASSIFIER = from_function(logits, jnp.float32(GAIN))


def pictures(margins):
  """One picture a margin, its pixels not all alike."""
  wobble = np.random.default_rng(0).uniform(-0.03, 0.03, (1, *SHAPE))
  wobble -= wobble.mean()
  level = 0.5 + np.asarray(margins, np.float32) / GAIN
  return (level[:, None, None, None] + wobble).astype(np.float32)


def keys(num, seed=0):
  return picture_keys(jax.random.key(seed), jnp.arange(num))


def batch(margins, kind=0, mask=None, first=0):
  num = len(margins)
  return Batch(
    images=pictures(margins),
    labels=np.zeros(num, np.int32),
    kind=np.broadcast_to(np.int32(kind), num),
    source=np.arange(first, first + num, dtype=np.int32),
    mask=np.ones(num, bool) if mask is None else mask,
  )


def measure(images, key=None, **options):
  options = {
    'sigma': 0.1,
    'targeted_lr': 1.0,
    'untargeted_lr': 1.0,
    'targeted_cap': 30,
    'untargeted_cap': 30,
    'radius': 0.5,
  } | options
  caps = {k: v for k, v in options.items() if k.endswith('cap')}
  rest = {k: v for k, v in options.items() if not k.endswith('cap')}
  run = jax.jit(
    lambda keys, images, **rest: tws.criteria(
      keys, CLASSIFIER, images, **rest, **caps
    )
  )
  return run(keys(len(images)) if key is None else key, images, **rest)


def steps(margin, lr, cap, slope):
  """The same count for one picture: the margin alone decides.

  A step moves each of the 16 pixels alike; the gradient of the margin is
  GAIN / 16 in each, so that its square is GAIN^2 / 16.
  """
  for count in range(cap):
    if margin > 0:
      return count
    margin += lr * slope(margin) * GAIN**2 / 16
  return cap


MARGINS = -np.array([0.01, 0.3, 0.7, 1.1, 1.6, 2.2, 2.9, 3.5])


@pytest.mark.parametrize('lr', [0.05, 0.2, 1.0])
@pytest.mark.parametrize('cap', [5, 40])
def test_counts_are_those_enumerated_by_hand(lr, cap):
  found = measure(
    pictures(MARGINS),
    targeted_lr=lr,
    untargeted_lr=lr,
    targeted_cap=cap,
    untargeted_cap=cap,
  )
  # The gradient of the cross-entropy is the other class' probability.
  towards = [steps(m, lr, cap, lambda m: expit(-m)) for m in MARGINS]
  away = [steps(m, lr, cap, expit) for m in MARGINS]
  np.testing.assert_array_equal(found.targeted, towards)
  np.testing.assert_array_equal(found.untargeted, away)
  assert len(set(away)) > 2
  assert max(away) == cap or lr == 1.0


def test_pixels_stay_within_the_radius_and_the_box():
  near = measure(pictures(MARGINS), radius=0.1)
  # The margin can rise by 0.1 GAIN at most.
  reachable = MARGINS > -0.1 * GAIN
  np.testing.assert_array_equal(near.targeted < 30, reachable)
  # A black pixel cannot get darker: a margin that only falls with one.
  falling = from_function(
    lambda images: jnp.stack(
      [0 * images[:, 0, 0, 0], -0.1 - images[:, 0, 0, 0]], axis=-1
    )
  )
  images = np.full((1, *SHAPE), 0.2, np.float32)
  stuck = tws.criteria(
    keys(1),
    falling,
    images,
    sigma=0.1,
    targeted_lr=9.0,
    untargeted_lr=9.0,
    radius=1.0,
    targeted_cap=4,
    untargeted_cap=4,
  )
  assert (stuck.targeted[0], stuck.untargeted[0]) == (4, 4)


def test_noise_criterion_has_the_expected_mean():
  num = 3000
  margin = -0.6
  found = measure(pictures(np.full(num, margin)), targeted_cap=0)
  # The mean of 16 draws of deviation 0.1, times GAIN.
  draws = margin + GAIN * 0.1 / 4 * np.random.default_rng(1).normal(size=100000)
  expected = 2 * np.abs(expit(draws) - expit(margin))
  error = expected.std() / np.sqrt(num)
  assert abs(found.noise.mean() - expected.mean()) < 4 * error
  assert len(np.unique(found.noise)) > num / 2


def test_targets_are_other_classes_all_equally_likely():
  num = 3000
  predicted = jnp.arange(num) % 4
  found = np.asarray(
    tws._other_classes(keys(num), jnp.zeros((num, 4)), predicted)
  )
  table = np.zeros((4, 4), int)
  np.add.at(table, (np.asarray(predicted), found), 1)
  assert not np.diag(table).any()
  others = table[~np.eye(4, dtype=bool)]
  assert stats.chisquare(others).pvalue > 1e-3


def test_rows_do_not_depend_on_the_batch_and_rest_when_done():
  images = pictures(np.concatenate([MARGINS, -MARGINS]))
  together = measure(images)
  assert len(np.unique(together.untargeted)) > 3
  for row in (0, 5, 9):
    alone = measure(images[row : row + 1], key=keys(16)[row : row + 1])
    for one, all_ in zip(alone, together, strict=True):
      np.testing.assert_allclose(one, all_[row : row + 1], rtol=1e-5)


@pytest.fixture(scope='module')
def clean():
  return np.random.default_rng(2).normal(-1.2, 0.5, 1200)


def drawn(rng, kind):
  """C1 finds kind 1, C2t finds kind 2, C2u nothing."""
  num = len(kind)
  return tws.Criteria(
    noise=np.abs(rng.normal(size=num)) * 0.1 + 0.3 * (kind == 1),
    targeted=rng.poisson(20, num) + 15 * (kind == 2),
    untargeted=rng.poisson(9, num),
  )


CAPS = {'targeted_cap': 99, 'untargeted_cap': 99, 'num_points': 21}


def best_of_all_rows(measured, kind, num):
  """The largest sum of attacked shares, by trying all rows of points.

  Args:
    measured: Criteria, the last of which finds nothing.
    kind: int[N].
    num: Number of points.
  """
  rates = np.linspace(0, 1, num)
  sides = [[-1, *values[kind == 0], 99] for values in measured[:2]]
  points = {}
  for pair in itertools.product(*sides):
    found = (measured[0] > pair[0]) | (measured[1] > pair[1])
    shares = [found[kind == k].mean() for k in (0, 1, 2)]
    points[pair] = (shares[0], np.mean(shares[1:]))

  @functools.cache
  def best(number, laxest):
    if number < 0:
      return 0.0
    return max(
      share + best(number - 1, pair)
      for pair, (false, share) in points.items()
      if false <= rates[number] + 1e-9
      and pair[0] >= laxest[0]
      and pair[1] >= laxest[1]
    )

  return best(num - 1, (-1, -1))


@pytest.mark.parametrize('seed', range(4))
def test_no_other_row_of_thresholds_finds_more(seed):
  rng = np.random.default_rng(seed)
  kind = np.array([0] * 8 + [1] * 3 + [2] * 5)
  values = rng.permuted(np.tile(np.arange(16.0), (2, 1)), axis=1)
  values[0] /= 8
  measured = tws.Criteria(*values, np.zeros(16))
  chosen = tws.choose_thresholds(
    measured, kind, targeted_cap=99, untargeted_cap=0, num_points=9
  )
  steps = np.diff(chosen.values, axis=0)
  assert (steps <= 0).all() and (np.diff(chosen.levels) <= 0).all()
  finds = lambda point: np.any(np.stack(measured, -1) > point, axis=-1)
  # Of the points, first and last stand for nothing and everything.
  level = np.linspace(1, 0, 11)[1:-1]
  rows = [np.argmin(np.abs(chosen.levels - at)) for at in level]
  total = 0
  for row, rate in zip(rows, np.linspace(0, 1, 9), strict=True):
    found = finds(chosen.values[row])
    assert found[kind == 0].mean() <= rate
    total += np.mean([found[kind == k].mean() for k in (1, 2)])
  assert total == pytest.approx(best_of_all_rows(measured, kind, 9), abs=1e-6)


def test_a_score_tells_which_points_find_a_picture():
  rng = np.random.default_rng(0)
  kind = rng.integers(0, 3, 400)
  chosen = tws.choose_thresholds(drawn(rng, kind), kind, **CAPS)
  fresh = drawn(rng, kind)
  scores = np.asarray(tws.strictness(chosen, fresh))
  chosen = jax.device_get(chosen)
  assert scores.min() >= 0 and scores.max() <= 1
  for point, level in zip(chosen.values, chosen.levels, strict=True):
    found = np.any(np.stack(fresh, -1) > point, axis=-1)
    np.testing.assert_array_equal(found, scores > level + 1e-6)


def test_together_criteria_find_what_each_alone_does_not():
  rng = np.random.default_rng(0)
  kind = np.repeat([0, 1, 2], [300, 100, 100])
  chosen = tws.choose_thresholds(drawn(rng, kind), kind, **CAPS)
  fresh = drawn(rng, kind)
  scores = np.asarray(tws.strictness(chosen, fresh))
  alone = [tws.mean_auc(values, kind) for values in fresh]
  assert max(alone) < 0.8 and tws.mean_auc(scores, kind) > 0.95


def test_a_kind_counts_the_same_however_many_pictures_it_has():
  kind = np.repeat([0, 1, 2], [60, 20, 20])
  measured = drawn(np.random.default_rng(1), kind)
  # Not found with ease, or all thresholds would do.
  measured = measured._replace(noise=measured.noise - 0.15 * (kind == 1))
  rows = np.concatenate([np.arange(80), np.tile(np.arange(80, 100), 30)])
  choose = lambda rows: tws.choose_thresholds(
    tws.Criteria(*(values[rows] for values in measured)), kind[rows], **CAPS
  )
  more = choose(rows)
  for one, other in zip(choose(np.arange(100)), more, strict=True):
    np.testing.assert_array_equal(one, other)
  assert tws.mean_auc(measured.noise[rows], kind[rows]) == pytest.approx(
    tws.mean_auc(measured.noise, kind)
  )


def test_where_one_criterion_does_it_its_order_is_kept():
  rng = np.random.default_rng(0)
  kind = np.repeat([0, 1], [60, 40])
  measured = drawn(rng, kind)._replace(targeted=np.zeros(100))
  chosen = tws.choose_thresholds(
    measured, kind, targeted_cap=0, untargeted_cap=0
  )
  # Beyond all clean pictures of the choice as well.
  values = np.linspace(0.01, 1.9, 100)
  fresh = tws.Criteria(values, np.zeros(100), np.zeros(100))
  assert (np.diff(tws.strictness(chosen, fresh)) > 0).all()


def test_only_rows_of_valid_that_are_no_padding_teach(clean):
  detector = tws.tws_detector(0.1, 0.1, 0.1, **QUICK)
  fit = lambda batches: detector.fit(jax.random.key(0), CLASSIFIER, [], batches)
  attacked = batch(clean[20:30] + 1, kind=2)
  second = lambda mask: batch(clean[10:20], first=10, mask=mask)
  state = fit([batch(clean[:10]), second(np.arange(10) >= 0), attacked])
  halves = [second(np.arange(10) < 5), second(np.arange(10) >= 5)]
  again = fit([batch(clean[:10]), halves[0], attacked, halves[1]])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state, again
  )
  with pytest.raises(UserError, match='10 attacked pictures of 10'):
    fit([attacked])
  with pytest.raises(UserError, match='0 attacked pictures of 0'):
    fit([])


def test_a_criterion_without_steps_is_left_out(clean):
  margins = np.concatenate([clean[:50], np.full(50, -0.1)])
  valid = [batch(margins, np.repeat([0, 1], 50))]
  detector = tws.tws_detector(0.1, targeted_cap=0, untargeted_cap=0)
  state = detector.fit(jax.random.key(0), CLASSIFIER, [], valid)
  fresh = pictures(clean[50:60])
  noise = measure(fresh, targeted_cap=0, untargeted_cap=0).noise
  scores = jax.jit(detector.score)(keys(10), CLASSIFIER, state, fresh)
  np.testing.assert_array_equal(np.argsort(scores), np.argsort(noise))
  assert len(np.unique(scores)) == 10


def test_surrogate_rises_with_the_criteria(clean):
  """Its C1 is the criterion; its counts are ranked as the counts are."""
  images = pictures(clean[:100])
  options = {'targeted_lr': 0.02, 'untargeted_lr': 0.02, 'targeted_cap': 200}
  measured = measure(images, **options, untargeted_cap=200)
  values = jax.jit(lambda x: tws._stand_ins(keys(100), CLASSIFIER, x, 0.1))(
    images
  )
  np.testing.assert_allclose(values[:, 0], measured.noise, rtol=1e-5)
  for stand_in, count in zip(values.T[1:], measured[1:], strict=True):
    assert stats.spearmanr(stand_in, count).statistic > 0.99
  detector = tws.tws_detector(0.1, 0.1, 0.1, **QUICK)
  valid = [batch(clean[:600], np.arange(600) % 2)]
  state = detector.fit(jax.random.key(0), CLASSIFIER, [], valid)
  surrogate = jax.jit(
    lambda x: detector.surrogate(keys(100), CLASSIFIER, state, x)
  )
  standard = (values - state.centre) / state.spread
  np.testing.assert_allclose(
    surrogate(images), np.max(standard, axis=1), rtol=1e-4, atol=1e-5
  )
  gradient = jax.grad(lambda x: surrogate(x).sum())(images)
  lower = surrogate(images - 0.001 * np.sign(gradient))
  assert (lower < surrogate(images)).mean() > 0.95


@pytest.mark.parametrize(
  'clean, attacked, settings',
  [
    # Near the boundary noise shows, unless it drowns all pictures.
    (-3.2, -0.05, {'sigma': (1000.0, 0.1)}),
    # Deep inside: one step would do for all, or not even the last.
    (-1.5, -3.5, {'targeted_lr': (100.0, 0.3, 1e-6)}),
    (-1.5, -3.5, {'untargeted_lr': (1e4, 2.0, 1e-6)}),
  ],
)
def test_tune_finds_the_setting_that_tells_them_apart(
  clean, attacked, settings
):
  spread = np.linspace(-0.4, 0.4, 20)
  margins = np.concatenate([clean + spread, np.full(20, attacked)])
  kind = np.repeat([0, 3], 20)
  found = tws.tune(
    jax.random.key(0),
    CLASSIFIER,
    [batch(margins, kind)],
    **{'sigmas': (0.1,), 'targeted_lrs': (0.3,), 'untargeted_lrs': (2.0,)}
    | {f'{name}s': values for name, values in settings.items()},
    targeted_cap=20,
    untargeted_cap=20,
  )
  assert found == tws.Tuned(0.1, 0.3, 2.0)
  tws.tws_detector(**found._asdict())


def test_misuse_is_explained():
  with pytest.raises(UserError, match='sigma is 0'):
    tws.tws_detector(0.0)
  with pytest.raises(UserError, match='radius is 2'):
    tws.tws_detector(radius=2.0)
  with pytest.raises(UserError, match='targeted_cap is -1'):
    tws.tws_detector(targeted_cap=-1)
  tune = lambda margins, **options: tws.tune(
    jax.random.key(0), CLASSIFIER, [batch(margins)], **options
  )
  with pytest.raises(UserError, match='0 attacked pictures of 3'):
    tune(
      np.ones(3),
      sigmas=(0.1,),
      targeted_lrs=(0.1,),
      untargeted_lrs=(0.1,),
      targeted_cap=2,
      untargeted_cap=2,
    )
  with pytest.raises(UserError, match='no sigma to choose'):
    tune(np.ones(3), sigmas=())
  one_class = from_function(lambda images: images[:, :1, 0, 0])
  with pytest.raises(UserError, match='one logit a picture'):
    tws._other_classes(keys(2), one_class(pictures([0, 1])), jnp.zeros(2, int))
