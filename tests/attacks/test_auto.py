"""AutoAttack and its parts: against the original, and what is special.

The record is that of make_golden_auto.py.
"""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxadv import attacks, losses, norms
from jaxadv.attacks import apgd, apgd_t, auto_attack, drive, fab, fab_t, square
from jaxadv.attacks.apgd import checkpoints
from jaxadv.attacks.fab import to_hyperplane
from jaxadv.classifier import from_function
from jaxadv.errors import UserError
from jaxadv.types import picture_keys

# Its name in the package is that of the attack.
square_module = importlib.import_module('jaxadv.attacks.square')

over_norms = pytest.mark.parametrize('norm', ['linf', 'l2'])


@pytest.fixture(scope='module')
def record():
  file = pathlib.Path(__file__).parent / 'golden_auto.npz'
  with np.load(file) as arrays:
    return dict(arrays)


@pytest.fixture(scope='module')
def against(record, golden_target):
  """Runs an attack on the record's pictures."""
  classifier, *_ = golden_target

  def against(attack, num_slots=None):
    images, labels = record['images'], record['labels']
    keys = picture_keys(jax.random.key(0), jnp.arange(len(labels)))
    program = jax.jit(lambda *given: drive(attack, *given, num_slots=num_slots))
    return program(keys, classifier, images, labels)

  return against


@pytest.fixture(scope='module')
def right(record, golden_target):
  classifier, *_ = golden_target
  right = jnp.argmax(classifier(record['images']), axis=-1) == record['labels']
  assert right.sum() == 60
  return np.asarray(right)


@over_norms
@pytest.mark.parametrize('part', ['apgd', 'apgd_t'])
def test_apgd_climbs_to_the_same_points(part, norm, record, against, right):
  ball = norms.ball(norm, record[f'{norm}_small'].item())
  options = {'num_steps': int(record['num_steps']), 'random_start': False}
  result = against(
    apgd(ball, **options)
    if part == 'apgd'
    else apgd_t(ball, num_targets=1, **options)
  )
  success = record[f'{norm}_{part}_success']
  assert 0 < success.sum() < len(success)
  np.testing.assert_array_equal(result.success[right][:16], success)
  # The original climbs on after a success.
  mine = result.images[right][:16][~success]
  # Rounding grows with the steps; a sign in Linf may turn.
  same = np.abs(mine - record[f'{norm}_{part}'][~success]) <= 1e-4
  assert same.mean() > 0.995


def test_step_sizes_are_reconsidered_when_the_paper_does():
  # Shares of the 100 steps: 0, 0.22, and 0.22 + 0.19, + 0.16, ...
  expected = [22, 41, 57, 70, 80, 87, 93, 99]
  windows = checkpoints(100)
  np.testing.assert_array_equal(np.flatnonzero(windows), expected)
  np.testing.assert_array_equal(windows[expected], np.diff([0, *expected]))


def test_steps_are_halved_until_a_maximum_inside_the_ball_is_found():
  # With steps of one length the iterate would jump over it for ever.
  peak = jnp.linspace(0.42, 0.58, 12).reshape(1, 2, 2, 3)
  hill = lambda images: -jnp.sum((images - peak) ** 2, axis=(1, 2, 3))
  classifier = from_function(
    lambda images: jnp.stack([jnp.zeros(len(images)), hill(images) - 1], 1)
  )
  images, labels = jnp.full((1, 2, 2, 3), 0.5), jnp.zeros(1, jnp.int32)
  keys = picture_keys(jax.random.key(0), jnp.arange(1))
  attack = apgd(norms.linf_ball(0.2), 100, loss=losses.margin)
  found = jax.jit(attack)(keys, classifier, images, labels)
  assert not found.success.any()
  assert jnp.abs(found.images - peak).max() < 0.01


@over_norms
def test_fab_finds_the_same_distances(norm, record, golden_target, right):
  classifier, *_ = golden_target
  images, labels = record['images'][right], record['labels'][right]
  keys = picture_keys(jax.random.key(0), jnp.arange(len(labels)))

  @jax.jit
  def sizes(rank):
    attack = fab(norm, int(record['num_steps']), target_rank=rank)
    result = attack(keys, classifier, images, labels)
    return norms.ball(norm, 1.0).distance(result.images - images)

  for rank, expected in enumerate(record[f'{norm}_fab'], start=1):
    size = sizes(rank)
    np.testing.assert_allclose(np.median(size), np.median(expected), rtol=0.01)
    close = np.abs(size / expected - 1) < 0.01
    assert close.mean() > 0.95


@over_norms
def test_projection_onto_a_hyperplane_in_the_box_is_the_nearest(norm):
  keys = jax.random.split(jax.random.key(0), 3)
  points = jax.random.uniform(keys[0], (40, 8))
  normal = jax.random.normal(keys[1], (40, 8)).at[:, 0].set(0)
  gap = jax.random.normal(keys[2], (40,)) * 2.5
  move = np.asarray(
    jax.jit(to_hyperplane, static_argnums=3)(points, normal, gap, norm)
  )
  assert ((points + move >= -1e-6) & (points + move <= 1 + 1e-6)).all()
  room = jnp.where(normal * gap[:, None] > 0, points, 1 - points)
  reachable = jnp.sum(jnp.abs(normal) * room, axis=1) > jnp.abs(gap)
  assert 10 < reachable.sum() < 35
  left = np.asarray(jnp.sum(normal * move, axis=1) + gap)
  np.testing.assert_allclose(left[reachable], 0, atol=1e-5)
  corner = -jnp.sign(normal * gap[:, None]) * room
  np.testing.assert_allclose(move[~reachable], corner[~reachable], atol=1e-6)
  order = {'linf': np.inf, 'l2': 2}[norm]
  for row in np.flatnonzero(reachable):
    size = np.linalg.norm(move[row], ord=order)
    assert size <= _nearest(points[row], normal[row], gap[row], norm) + 1e-5


def _nearest(point, normal, gap, norm):
  """The smallest norm of a change onto the hyperplane, by other means."""
  point, normal = np.float64(point), np.float64(normal)
  if norm == 'linf':
    # Least t with -t <= change <= t: a linear program in (change, t).
    ones = np.ones((8, 1))
    bound = np.block([[np.eye(8), -ones], [-np.eye(8), -ones]])
    found = scipy.optimize.linprog(
      np.eye(9)[8],
      A_ub=bound,
      b_ub=np.zeros(16),
      A_eq=np.append(normal, 0)[None],
      b_eq=[-gap],
      bounds=[*zip(-point, 1 - point, strict=True), (0, None)],
    )
    return found.x[8]
  # The multiplier at which the clipped change meets the hyperplane.
  clipped = lambda lam: np.clip(-lam * normal, -point, 1 - point)
  lam = scipy.optimize.brentq(
    lambda lam: normal @ clipped(lam) + gap, -1e4, 1e4, xtol=1e-12
  )
  return np.linalg.norm(clipped(lam))


def test_squares_shrink_as_in_the_original(record):
  queries = jnp.arange(len(record['p']))
  share = 0.8 / 2.0 ** np.asarray(square_module.halvings(queries))
  np.testing.assert_allclose(share, record['p'], rtol=1e-6)
  bump = square_module._bump(7)
  recorded = record['bump']  # It was turned at random.
  turned = min((bump, bump.T), key=lambda one: np.abs(one - recorded).max())
  np.testing.assert_allclose(turned, recorded, atol=1e-6)


@over_norms
def test_square_succeeds_as_often(norm, record, against):
  ball = norms.ball(norm, record[f'{norm}_large'].item())
  result = against(square(ball, int(record['num_queries'])))
  expected = record[f'{norm}_square_success'].mean()
  assert 0.1 < expected < 0.5
  # Four pictures of the 64; the draws are others.
  assert abs(result.success.mean() - expected) <= 4 / 64
  size = ball.distance(result.images - record['images'])
  assert size.max() <= ball.epsilon + 1e-6


@pytest.mark.parametrize(
  'norm', ['linf', pytest.param('l2', marks=pytest.mark.slow)]
)
def test_auto_attack_leaves_the_same_pictures(norm, record, against, right):
  epsilon = record[f'{norm}_large'].item()
  result = against(auto_attack(epsilon, norm), num_slots=16)
  expected = record[f'{norm}_auto_success']
  assert 0.2 < expected.mean() < 0.8
  np.testing.assert_array_equal(result.success, expected)
  np.testing.assert_array_equal(result.images[~right], record['images'][~right])
  size = norms.ball(norm, epsilon).distance(result.images - record['images'])
  assert size.max() <= epsilon + 1e-6


@pytest.mark.parametrize(
  'attack',
  [
    apgd(norms.l2_ball(0.8), 10, targeted=True),
    fab('linf', 10, targeted=True, epsilon=0.06),
    square(norms.linf_ball(0.3), 60, targeted=True),
  ],
  ids=['apgd', 'fab', 'square'],
)
def test_targeted_ones_reach_the_class(attack, trained):
  classifier, images, labels = trained
  wanted = (labels + 1) % 4
  keys = picture_keys(jax.random.key(0), jnp.arange(40))
  result = jax.jit(attack)(keys, classifier, images, wanted)
  reached = jnp.argmax(classifier(result.images), axis=-1) == wanted
  np.testing.assert_array_equal(result.success, reached)
  assert attack.targeted and result.success.mean() > 0.5


def test_all_rivals_are_tried_where_there_are_few(linear):
  keys = picture_keys(jax.random.key(0), jnp.arange(24))
  run = lambda num_targets: (
    jax.jit(fab_t('linf', 10, num_targets=num_targets))(keys, *linear).images
  )
  np.testing.assert_array_equal(run(9), run(2))


def test_targeted_dlr_needs_four_classes(linear):
  keys = picture_keys(jax.random.key(0), jnp.arange(24))
  with pytest.raises(UserError, match='needs 4 classes .* has 3; use apgd'):
    jax.eval_shape(auto_attack(0.1), keys, *linear)


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (lambda: apgd(norms.l1_ball(1.0)), 'l1'),
    (lambda: apgd(norms.l2_ball(1.0), 0), 'num_steps'),
    (lambda: apgd(norms.l2_ball(1.0), rho=2), 'rho'),
    (lambda: apgd_t(norms.l2_ball(1.0), num_targets=0), 'num_targets'),
    (lambda: fab('l1'), "norm is 'l1'"),
    (lambda: fab(eta=0.9), 'eta'),
    (lambda: fab(beta=0), 'beta'),
    (lambda: fab(target_rank=0), 'target_rank'),
    (lambda: fab_t(epsilon=-1), 'epsilon'),
    (lambda: square(norms.l1_ball(1.0)), 'l1'),
    (lambda: square(norms.l2_ball(1.0), p_init=0), 'p_init'),
    (lambda: auto_attack(0.1, version='best'), 'version'),
    (lambda: auto_attack(0.1, 'l1'), 'norm'),
    (lambda: attacks.make('auto_attack', epsilon=2.0), 'epsilon'),
    (lambda: attacks.make('apgd', loss='best'), 'loss'),
  ],
)
def test_bad_hyperparameters_are_named(build, message):
  with pytest.raises(UserError, match=message):
    build()
