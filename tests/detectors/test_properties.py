"""What holds for every detector of the table."""

import chex
import jax
import numpy as np
import pytest

from jaxadv.errors import UserError
from jaxadv.metrics.roc import auc
from jaxadv.types import picture_keys
from jaxadv.units import to_uint8
from tests.detectors import cases
from tests.detectors.cases import NONE, STRONG

over_all = pytest.mark.parametrize('case', cases.CASES, ids=lambda c: c.name)


def score(case, state, images, source=None):
  source = np.arange(len(images)) if source is None else source
  keys = picture_keys(jax.random.key(2), source)
  return np.asarray(
    jax.jit(case.detector.score)(keys, case.classifier, state, images)
  )


def leaves(state):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@over_all
def test_finds_a_visible_attack(case, fit):
  test = cases.pictures(3, 200, STRONG)
  found = auc(score(case, fit(case), test.images), test.kind != 0)
  assert found > 0.98


@over_all
def test_is_blind_where_there_is_nothing_to_see(case, fit):
  test = cases.pictures(3, 200, NONE)
  found = auc(score(case, fit(case, NONE), test.images), test.kind != 0)
  # Three standard deviations of the AUC of 100 against 100 pictures.
  assert abs(found - 0.5) < 0.13


@over_all
def test_rows_do_not_depend_on_the_batch(case, fit):
  images = cases.pictures(4, 12, STRONG).images
  together = score(case, fit(case), images)
  assert np.ptp(together) > 0.1
  source = np.arange(12)
  backwards = score(case, fit(case), images[::-1], source[::-1])[::-1]
  alone = score(case, fit(case), images[5:6], source[5:6])
  np.testing.assert_allclose(backwards, together, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(alone, together[5:6], rtol=1e-5, atol=1e-5)


@over_all
def test_refit_gives_the_same_state_and_another_key_another(case, fit):
  first = leaves(fit(case))
  chex.assert_trees_all_equal(first, leaves(fit(case, again=1)))
  other = leaves(fit(case, seed=1))
  differs = any((a != b).any() for a, b in zip(first, other, strict=True))
  assert differs == case.draws


@over_all
def test_saved_and_restored_scores_the_same(case, fit, tmp_path):
  case.save(tmp_path / 'detector.npz', fit(case))
  # A state of the same form that has learned something else.
  restored = case.restore(tmp_path / 'detector.npz', fit(case, seed=1))
  images = cases.pictures(5, 12, STRONG).images
  np.testing.assert_array_equal(
    score(case, restored, images), score(case, fit(case), images)
  )


@over_all
def test_rows_of_padding_teach_nothing(case, fit):
  train = cases.batches(cases.pictures(0, 96, STRONG), 32)
  junk = cases.pictures(6, 32, STRONG)
  junk = junk._replace(kind=2 - junk.kind, mask=np.zeros(32, bool))
  state = case.detector.fit(
    jax.random.key(0),
    case.classifier,
    [*train, junk],
    [junk, *cases.batches(cases.pictures(1, 32, STRONG), 32)],
  )
  chex.assert_trees_all_equal(state, fit(case))


@over_all
def test_takes_8_bit_pictures_and_refuses_what_is_neither(case, fit):
  """Converted before anything else, as test_borders sees."""
  keys = picture_keys(jax.random.key(2), np.arange(4))
  levels = to_uint8(cases.pictures(3, 4, STRONG).images)
  functions = [case.detector.score, case.detector.surrogate]
  for function in filter(None, functions):
    found = jax.eval_shape(function, keys, case.classifier, fit(case), levels)
    assert (found.shape, found.dtype) == ((4,), np.float32)
    for images in levels.astype(np.float32), levels.astype(np.int64):
      with pytest.raises(UserError, match='divide by 255|must be uint8'):
        function(keys, case.classifier, fit(case), images)


@over_all
def test_pictures_of_other_channels_are_a_sentence(case, fit):
  if case.name in ('tws', 'log_sensitivity', 'confidence'):
    pytest.skip('it has no weights of its own')
  for channels in 1, 2:
    images = cases.pictures(3, 4, STRONG).images[..., :channels]
    with pytest.raises(UserError, match='do not fit the netw|as many channels'):
      jax.eval_shape(
        case.detector.score, None, case.classifier, fit(case), images
      )


@over_all
def test_score_or_its_surrogate_has_a_gradient(case, fit):
  function = case.detector.surrogate or case.detector.score
  images = cases.pictures(7, 4, STRONG).images
  gradient = jax.jit(
    jax.grad(
      lambda x: function(
        jax.random.split(jax.random.key(2), 4), case.classifier, fit(case), x
      ).sum()
    )
  )(images)
  assert np.isfinite(gradient).all()
  assert (np.abs(gradient).max(axis=(1, 2, 3)) > 0).all()
