"""Carlini-Wagner against other libraries and where the answer is known."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, norms
from jaxadv.attacks import const_search
from jaxadv.classifier import from_function
from jaxadv.errors import UserError
from jaxadv.types import picture_keys

from .test_properties import boundary_distance

# As in make_golden_cw.py.
SEARCH = {
  'binary_search_steps': 6,
  'initial_const': 0.01,
  'abort_early': False,
}


@pytest.fixture(scope='module')
def recorded():
  with np.load(pathlib.Path(__file__).parent / 'golden_cw.npz') as file:
    return dict(file)


@pytest.mark.parametrize(
  ('names', 'options'),
  [
    (('cw', 'cw_foolbox'), {}),
    (('cw_targeted',), {'targeted': True}),
    (('cw_confident',), {'confidence': 1.0}),
  ],
  ids=lambda value: value[0] if isinstance(value, tuple) else '',
)
def test_same_pictures_as_the_other_libraries(
  names, options, golden, recorded, run, monkeypatch
):
  module = sys.modules['jaxadv.attacks.carlini_wagner']
  monkeypatch.setattr(module, '_ROOM', 1e-6)  # As in the authors' code.
  result = run(attacks.carlini_wagner(100, **SEARCH, **options))
  size = norms.l2(result.images - golden['images'])
  for name in names:
    expected = norms.l2(recorded[name] - golden['images'])
    # adv-lib gives back the clean picture where it failed, as we do.
    np.testing.assert_array_equal(result.success, expected > 0)
    np.testing.assert_allclose(
      jnp.median(size), jnp.median(expected), rtol=0.01
    )
    # Adam's first steps are signs, so that a rounding can turn a whole path.
    close = np.abs(result.images - recorded[name]) < 1e-3
    assert close.mean() > 0.9


def test_room_beyond_the_box_costs_no_distance(golden, recorded, run):
  result = run(attacks.carlini_wagner(100, **SEARCH))
  size = norms.l2(result.images - golden['images'])
  expected = norms.l2(recorded['cw'] - golden['images'])
  assert jnp.all(result.success)
  assert jnp.median(size) < 1.01 * jnp.median(expected)


def test_pixels_at_the_ends_of_the_range_move(golden_target, run):
  classifier, images, _ = golden_target
  images = jnp.round(images)
  labels = jnp.argmax(classifier(images), axis=-1)
  result = run(attacks.carlini_wagner(100, **SEARCH), images, labels)
  nearby = run(attacks.deepfool(), images, labels)
  assert jnp.all(result.success)
  size, other = (norms.l2(r.images - images) for r in (result, nearby))
  assert jnp.median(size) < 1.05 * jnp.median(other)


def test_a_step_is_one_pass(trained):
  calls = []

  def counted(variables, images):
    jax.debug.callback(lambda: calls.append(None))
    return trained.classifier.apply(variables, images)

  classifier = from_function(counted, trained.classifier.variables)
  keys = picture_keys(jax.random.key(0), jnp.arange(40))
  attack = attacks.carlini_wagner(5, binary_search_steps=2, abort_early=False)
  jax.block_until_ready(
    jax.jit(attack)(keys, classifier, trained.images, trained.labels)
  )
  jax.effects_barrier()
  assert len(calls) == 10


def test_aborted_runs_save_steps_and_cost_no_distance(trained):
  keys = picture_keys(jax.random.key(0), jnp.arange(40))
  given = (trained.classifier, trained.images, trained.labels)

  def search(abort_early):
    attack = attacks.carlini_wagner(
      100,
      binary_search_steps=4,
      initial_const=0.1,
      abort_early=abort_early,
    )

    def advance(state, _):
      return attack.step(*given, state), state.done

    start = attack.init(keys, *given)
    state, done = jax.lax.scan(advance, start, length=attack.max_steps)
    return attack.finish(*given, state), jnp.sum(~done, axis=0)

  (whole, all_steps), (short, steps) = map(
    jax.jit(search, static_argnums=0), (False, True)
  )
  assert jnp.all(whole.success) and jnp.all(short.success)
  assert set(all_steps.tolist()) == {1, 400}  # 1: misclassified when clean.
  assert steps.sum() < 0.9 * all_steps.sum()
  sizes = [norms.l2(r.images - trained.images) for r in (whole, short)]
  np.testing.assert_allclose(*map(jnp.median, sizes), rtol=0.02)


def test_linear_classifier_is_crossed_at_its_exact_distance(linear):
  nearest = boundary_distance(linear, 'l2').min(axis=1)
  keys = picture_keys(jax.random.key(0), jnp.arange(24))

  def attacked(learning_rate):
    attack = attacks.carlini_wagner(
      60, binary_search_steps=6, initial_const=0.01, learning_rate=learning_rate
    )
    return attack(keys, linear.classifier, linear.images, linear.labels)

  # Each row has the learning rate that suits its distance.
  result = jax.jit(attacked)(nearest / 20)
  size = norms.l2(result.images - linear.images)
  assert jnp.all(result.success)
  assert jnp.all(size >= nearest * (1 - 1e-5))
  assert jnp.all(size <= 1.1 * nearest)


def test_every_row_searches_its_own_constant():
  needed = jnp.array([0.002, 0.02, 7.0, 1e9])
  search = const_search.start(0.01, (4,))
  options = {'num_steps': 2, 'abort_early': False}
  seen = []
  for _ in range(18):
    seen.append(search.const)
    search, ended = const_search.advance(
      search,
      search.const >= needed,
      jnp.ones(4),
      binary_search_steps=9,
      **options,
    )
  assert jnp.all(ended) and jnp.all(search.runs == 9)
  consts = np.stack(seen)[::2].T
  np.testing.assert_allclose(consts[0, :4], [0.01, 0.005, 0.0025, 0.00125])
  np.testing.assert_allclose(consts[1, :4], [0.01, 0.1, 0.055, 0.0325])
  np.testing.assert_allclose(
    consts[2, :6], [0.01, 0.1, 1, 10, 5.5, 7.75], rtol=1e-6
  )
  np.testing.assert_allclose(consts[3], 10.0 ** np.arange(-2, 7), rtol=1e-5)
  assert jnp.all(search.lower[:3] < needed[:3])
  assert jnp.all(needed[:3] <= search.upper[:3])
  assert jnp.isinf(search.upper[3])


def test_ten_runs_end_with_the_best_constant():
  search = const_search.start(1.0, (1,))
  for _ in range(10):
    last = search
    search, _ = const_search.advance(
      search,
      search.const >= 0.3,
      jnp.ones(1),
      num_steps=1,
      binary_search_steps=10,
      abort_early=False,
    )
  assert last.const == last.upper


def test_a_run_ends_where_its_row_makes_no_progress():
  search = const_search.start(1.0, (3,))
  ends = []
  for count in range(30):
    loss = jnp.array([1.0, 1 / (1 + count), jnp.nan])
    search, ended = const_search.advance(
      search,
      jnp.zeros(3, bool),
      loss,
      num_steps=30,
      binary_search_steps=2,
      abort_early=True,
    )
    ends.append(ended)
  ends = np.stack(ends)
  # Looked at every third step; a NaN is never progress.
  assert np.flatnonzero(ends[:, 0])[0] == 3
  assert np.flatnonzero(ends[:, 1]).tolist() == [29]
  assert ends[:, 2].all()


@pytest.mark.filterwarnings('ignore::jaxadv.errors.DoubtWarning')
def test_linf_keeps_the_last_success():
  # Class 1 wins only while the mean is brighter by 0.0065 to 0.0135.
  def logits(images):
    brighter = images.mean(axis=(1, 2, 3)) - 0.5
    return jnp.stack([0 * brighter, 1 - jnp.abs(brighter - 0.01) / 0.0035], 1)

  images, labels = jnp.full((2, 4, 4, 3), 0.5), jnp.zeros(2, jnp.int32)
  keys = picture_keys(jax.random.key(0), jnp.arange(2))
  # 0, 1 and 2 steps of 0.005, then momentum carries on, too far.
  attack = attacks.carlini_wagner_linf(0.1, 3, learning_rate=0.005)
  result = jax.jit(attack)(keys, from_function(logits), images, labels)
  assert jnp.all(result.success)
  np.testing.assert_allclose(result.images, 0.51, atol=1e-6)
  # Where none succeeded, the last iterate.
  attack = attacks.carlini_wagner_linf(0.005, 3, learning_rate=0.005)
  result = jax.jit(attack)(keys, from_function(logits), images, labels)
  assert not jnp.any(result.success)
  np.testing.assert_allclose(result.images, 0.505, atol=1e-6)


def test_linf_reaches_a_class(golden, run):
  result = run(attacks.carlini_wagner_linf(0.2, 30, targeted=True))
  assert result.success.mean() > 0.5
  assert norms.linf(result.images - golden['images']).max() <= 0.2 + 1e-6


@pytest.mark.parametrize(
  ('name', 'hyper', 'words'),
  [
    ('carlini_wagner', {'num_steps': 0}, 'num_steps is 0'),
    ('carlini_wagner', {'binary_search_steps': 0}, 'binary_search_steps is 0'),
    ('carlini_wagner', {'initial_const': 0}, r'initial_const is 0 .*\(0, inf'),
    ('carlini_wagner', {'learning_rate': -1}, 'learning_rate is -1'),
    ('carlini_wagner', {'confidence': -1}, 'confidence is -1'),
    ('carlini_wagner_linf', {'epsilon': 8}, 'epsilon is 8 .*8/255'),
    ('carlini_wagner_linf', {'const': 0}, 'const is 0'),
    ('ddn', {'gamma': 2}, 'gamma is 2'),
    ('ddn', {'init_norm': 0}, 'init_norm is 0'),
    ('ddn', {'levels': 1}, 'levels is 1'),
    ('ead', {'beta': -1}, 'beta is -1'),
    ('ead', {'decision_rule': 'l2'}, "decision_rule is 'l2' .* en, l1"),
  ],
)
def test_wrong_hyperparameters_are_named(name, hyper, words):
  with pytest.raises(UserError, match=words):
    attacks.make(name, **hyper)
