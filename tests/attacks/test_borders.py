"""What factories and attacks take, and how they refuse the rest."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks
from jaxadv.attacks.patch import place_patch
from jaxadv.errors import DataError, UserError
from jaxadv.norms import l1_ball, l2_ball, linf_ball
from jaxadv.types import Attack, picture_keys

from . import cases

WITH_RADIUS = {
  'fgsm': attacks.fgsm,
  'bim': attacks.bim,
  'pgd': attacks.pgd,
  'apgd': attacks.apgd,
  'square': attacks.square,
  'patch': lambda radius: attacks.patch(radius, 2),
  'carlini_wagner_linf': attacks.carlini_wagner_linf,
  'fab': lambda radius: attacks.fab(epsilon=radius),
  'apgd_t': attacks.apgd_t,
  'fab_t': lambda radius: attacks.fab_t(epsilon=radius),
  'auto_attack': attacks.auto_attack,
}
over_radii = pytest.mark.parametrize('name', WITH_RADIUS)


def classify(images):
  flat = images.reshape(len(images), -1)
  return flat[:, :1] * jnp.arange(1.0, 6.0)


def traced(attack, shape=(2, 4, 4, 1), images=None):
  """Traces an attack on some pictures; computes nothing."""
  images = jnp.full(shape, 0.5) if images is None else images
  keys = picture_keys(jax.random.key(0), jnp.arange(len(images)))
  labels = jnp.full(len(images), 4, jnp.int32)
  run = functools.partial(attacks.drive, attack)
  return jax.eval_shape(
    lambda keys, images, labels: run(keys, classify, images, labels),
    keys,
    images,
    labels,
  )


@over_radii
def test_a_radius_and_a_ball_do_alike(name):
  build = WITH_RADIUS[name]
  of_radius, of_ball = build(0.1), build(linf_ball(0.1))
  if not isinstance(of_radius, Attack):  # Several, with no state in common.
    assert traced(of_ball).images.shape == (2, 4, 4, 1)
    return
  keys = picture_keys(jax.random.key(0), jnp.arange(2))
  images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.full(2, 4, jnp.int32)
  states = [
    attack.start(keys, classify, images, labels)
    for attack in (of_radius, of_ball)
  ]
  chex.assert_trees_all_equal(*states)


@over_radii
@pytest.mark.parametrize(
  ('radius', 'words'),
  [
    ([0.1, 0.2], r'epsilon is a list of 2 .* evaluate_over'),
    ('8/255', "epsilon is '8/255' but must be a number"),
    (None, 'epsilon is None but must be a number'),
    (True, 'epsilon is True but must be a number'),
    (0, r'epsilon is 0 .*\(0, 1\]'),
    (8, r'epsilon is 8 .*8/255'),
    (float('nan'), 'epsilon is nan'),
  ],
)
def test_what_is_no_radius_is_refused(name, radius, words):
  if radius is None and name.startswith('fab'):
    return  # It then looks for the smallest change.
  with pytest.raises(UserError, match=words):
    WITH_RADIUS[name](radius)


@pytest.mark.parametrize(
  ('build', 'words'),
  [
    (lambda: attacks.fgsm(l2_ball(1.0)), 'fgsm works in the norm linf, not'),
    (lambda: attacks.patch(l1_ball(1.0), 2), 'linf, not in l1; pgd works'),
    (lambda: attacks.carlini_wagner_linf(l2_ball(1.0)), 'not in l2'),
    (lambda: attacks.auto_attack(l1_ball(1.0)), 'linf or l2, not in l1'),
    (lambda: attacks.auto_attack(l2_ball(1.0), 'linf'), "norm is 'linf' but"),
    (lambda: attacks.fab('linf', epsilon=l2_ball(1.0)), 'is one in l2'),
    (lambda: attacks.fab_t('l2', epsilon=linf_ball(0.1)), 'is one in linf'),
  ],
)
def test_balls_of_another_norm_are_refused(build, words):
  with pytest.raises(UserError, match=words):
    build()


COUNTED = {
  'pgd': 'num_steps',
  'deepfool': 'num_steps',
  'lavan': 'size',
  'hsv': 'num_trials',
  'carlini_wagner': 'binary_search_steps',
  'carlini_wagner_linf': 'num_steps',
  'ddn': 'levels',
  'ead': 'num_steps',
  'apgd': 'num_steps',
  'fab_t': 'num_targets',
  'square': 'num_queries',
}


@pytest.mark.parametrize('value', [10.0, 10.5, '10', True, float('nan'), [10]])
@pytest.mark.parametrize('name', COUNTED)
def test_counts_are_whole_numbers(name, value):
  with pytest.raises(
    UserError, match=f'{COUNTED[name]} is .* must be a whole number'
  ):
    attacks.make(name, **{COUNTED[name]: value})
  attacks.make(name, **{COUNTED[name]: np.int64(10)})


@pytest.mark.parametrize('value', ['0.1', True, float('inf'), None, {}])
def test_numbers_are_finite_numbers(value):
  for name, key in (
    ('deepfool', 'overshoot'),
    ('carlini_wagner', 'learning_rate'),
    ('ddn', 'gamma'),
    ('ni_plus', 'gain'),
  ):
    with pytest.raises(UserError, match=f'{key} is .* but must '):
      attacks.make(name, **{key: value})


def test_radii_of_another_number_of_pictures_are_refused():
  for build in WITH_RADIUS.values():
    if isinstance(attack := build(jnp.full(3, 0.1)), Attack):
      with pytest.raises(UserError, match=r'shape \(3,\) .* the 2 pictures'):
        traced(attack)


@pytest.mark.parametrize(
  ('name', 'hyper', 'words'),
  [
    ('pgd', {'eps': 0.1}, 'did you mean epsilon'),
    ('pgd', {'steps': 5}, 'did you mean num_steps'),
    ('ddn', {'gama': 0.1}, 'did you mean gamma'),
    ('deep_fool', {}, 'did you mean deepfool'),
    ('pgd', {'targeted': 'no'}, "targeted is 'no' but must be True or False"),
    ('carlini_wagner', {'abort_early': 0}, 'abort_early is 0 but must be True'),
  ],
)
def test_slips_in_names_and_flags_are_seen(name, hyper, words):
  with pytest.raises(UserError, match=words):
    attacks.make(name, **hyper)


@pytest.mark.parametrize(
  'shape',
  [(2, 8, 8, 1), (2, 1, 1, 1), (2, 1, 1, 3), (2, 5, 9, 1), (2, 9, 5, 3)],
)
def test_grey_small_and_oblong_pictures_are_attacked_or_refused(shape):
  refused = set()
  for case in cases.CASES:
    try:
      result = traced(cases.build(case), shape)
    except UserError:
      refused.add(case.name)
    else:
      assert result.images.shape == shape, case.name
  grey = {'hsv', 'apply_delta', 'apply_patch'} if shape[-1] == 1 else set()
  small = {'patch', 'lavan', 'lavan_targeted'}
  assert refused == grey | {
    (2, 1, 1, 1): small,
    (2, 1, 1, 3): small,
    (2, 9, 5, 3): {'lavan_targeted'},  # Its place is too far right.
  }.get(shape, set())


def test_a_patch_of_8_bits_is_the_patch_in_floats():
  levels = np.arange(75, dtype=np.uint8).reshape(5, 5, 3) * 3
  keys = picture_keys(jax.random.key(0), jnp.arange(2))
  images = jnp.full((2, 16, 16, 3), 0.5)
  pasted = [place_patch(keys, images, p) for p in (levels, levels / 255)]
  np.testing.assert_allclose(*pasted, atol=1e-6)
  assert 0 <= pasted[0].min() and pasted[0].max() <= 1
  assert jnp.abs(pasted[0] - 0.5).max() > 0.4
  results = [
    attacks.apply_patch(p).finish(
      classify,
      images,
      jnp.zeros(2, jnp.int32),
      attacks.apply_patch(p).start(keys, classify, images, jnp.full(2, 4)),
    )
    for p in (levels, levels / 255)
  ]
  np.testing.assert_allclose(results[0].images, results[1].images, atol=1e-6)


@pytest.mark.parametrize(
  ('patch', 'words'),
  [
    (np.full((4, 4, 1), 200.0), r'patch ranges from 200 .*divide by 255'),
    (np.full((4, 4, 1), -0.5), r'patch ranges from -0.5'),
    (np.zeros((4, 4, 1), int), 'patch are int64'),
    (np.zeros((4, 5, 1)), r'patch has the shape \(4, 5, 1\) but .* square'),
    (np.zeros((4, 4)), r'patch has the shape \(4, 4\)'),
  ],
)
def test_what_is_no_patch_is_refused(patch, words):
  with pytest.raises(UserError, match=words):
    attacks.apply_patch(patch)
  keys = picture_keys(jax.random.key(0), jnp.arange(2))
  with pytest.raises(UserError, match=words):
    place_patch(keys, jnp.zeros((2, 8, 8, 1)), patch)


def test_a_patch_has_the_channels_of_the_pictures():
  with pytest.raises(UserError, match='patch has 3 channels .* have 1'):
    traced(attacks.apply_patch(np.zeros((2, 2, 3))))


@pytest.mark.parametrize(
  ('delta', 'words'),
  [
    (np.full((4, 4, 1), 8.0), 'delta goes up to 8 .* divide grey levels'),
    (np.full((4, 4, 1), -2.0), 'delta goes up to 2 '),
    (np.zeros((4, 4, 1), np.uint8), 'delta is uint8 but must be floating'),
  ],
)
def test_what_is_no_change_is_refused(delta, words):
  with pytest.raises(UserError, match=words):
    attacks.apply_delta(delta)


def test_a_change_has_the_shape_of_the_pictures():
  for shape in (3, 4, 1), (2, 4, 4, 1), (3,):
    with pytest.raises(UserError, match='delta has the shape .* the pictures'):
      traced(attacks.apply_delta(np.zeros(shape)))
  traced(attacks.apply_delta(np.zeros(1)))
  with pytest.raises(DataError, match='delta holds NaN'):
    attacks.apply_delta(np.full((4, 4, 1), np.nan))


def test_losses_go_by_name_or_as_functions():
  for build in (attacks.pgd, attacks.apgd):
    with pytest.raises(UserError, match="loss is 'dlt' but must be one of ce"):
      build(0.1, loss='dlt')
    assert traced(build(0.1, loss='dlr')).images.shape == (2, 4, 4, 1)


@pytest.mark.parametrize(
  ('build', 'words'),
  [
    (lambda several: attacks.evading(several, classify), 'a Composite was'),
    (lambda several: attacks.in_square(several, 2), 'a single attack is'),
    (lambda _: attacks.over(attacks.fgsm, []), r'values have the shape \(0,\)'),
    (lambda _: attacks.over(attacks.fgsm, 0.1), r'values have the shape \(\)'),
    (lambda _: attacks.in_square(attacks.fgsm(0.1), 2, place=3), 'place is 3'),
  ],
)
def test_misused_combinations_are_explained(build, words):
  with pytest.raises(UserError, match=words):
    build(attacks.restarts(attacks.pgd(0.1), 2))


@pytest.mark.parametrize('num_slots', [0, 2.0, '2'])
def test_slots_are_counted(num_slots):
  with pytest.raises(UserError, match='num_slots is '):
    attacks.drive(
      attacks.fgsm(0.1), None, None, None, None, num_slots=num_slots
    )
