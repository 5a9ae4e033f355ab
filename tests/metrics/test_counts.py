"""Accuracy, distortion and confusion on examples small enough to read."""

import numpy as np
import pytest

from jaxadv.errors import UserError
from jaxadv.metrics import accuracy, confusion, distortion, intervals


def test_accuracy_leaves_out_padding():
  share = accuracy.accuracy([0, 1, 2, 0], [0, 1, 1, 0], [1, 1, 1, 0])
  assert share == (2, 3)
  assert share.value == pytest.approx(2 / 3)
  assert share.interval(0.9) == intervals.wilson(2, 3, 0.9)
  assert np.isnan(accuracy.Share(0, 0).value)


def test_success_rate_and_robust_accuracy_have_their_own_bases():
  clean_correct = [1, 1, 1, 0, 0]
  success = [1, 0, 0, 1, 0]
  assert accuracy.attack_success_rate(success, clean_correct) == (1, 3)
  assert accuracy.robust_accuracy(success, clean_correct) == (2, 5)


def test_distortion_by_hand():
  clean = np.zeros((2, 2, 2, 3))
  attacked = clean.copy()
  clean[0, 0, 0, 2] = 0.2
  attacked[0, 0, 0] = [0.15, 0, 0]
  attacked[0, 1, 1, 1] = 0.6
  found = distortion.distortion(clean, attacked)
  np.testing.assert_array_equal(found.l0, [2, 0])
  np.testing.assert_allclose(found.l1, [0.95, 0], rtol=1e-6)
  np.testing.assert_allclose(found.l2, [0.65, 0], rtol=1e-6)
  np.testing.assert_allclose(found.linf, [0.6, 0], rtol=1e-6)


def test_distortion_of_8_bit_pictures_does_not_wrap_around():
  clean = np.full((1, 2, 2, 1), 10, np.uint8)
  attacked = np.full((1, 2, 2, 1), 2, np.uint8)
  found = distortion.distortion(clean, attacked)
  np.testing.assert_allclose(found.linf, 8 / 255)
  np.testing.assert_allclose(
    distortion.distortion(clean / np.float32(255), attacked).linf, 8 / 255
  )


def test_confusion_keeps_classes_that_do_not_occur_and_adds_up():
  matrix = confusion.confusion_matrix([0, 1, 1], [0, 0, 1], 3)
  np.testing.assert_array_equal(matrix, [[1, 0, 0], [1, 1, 0], [0, 0, 0]])
  matrix += confusion.confusion_matrix([2], [1], 3)
  assert matrix[2, 1] == 1 and matrix.sum() == 4


def test_detection_matrix_calls_scores_above_the_threshold():
  matrix = confusion.detection_matrix(
    [0.1, 0.5, 0.5, 0.9], [0, 0, 1, 1], threshold=0.5
  )
  np.testing.assert_array_equal(matrix, [[2, 0], [1, 1]])


def test_shapes_that_differ_are_refused():
  with pytest.raises(UserError, match='as many'):
    accuracy.accuracy([0, 1], [0])
  with pytest.raises(UserError, match='one value a picture'):
    accuracy.robust_accuracy([0, 1], [0])
  with pytest.raises(UserError, match='height, width'):
    distortion.distortion(np.zeros((2, 2, 3)), np.zeros((2, 2, 3)))


def test_a_picture_converted_by_anyone_does_not_differ_from_itself():
  levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  for same in (levels / 255, (levels / 255).astype(np.float32)):
    found = distortion.distortion(levels, same)
    assert found.l0 == found.l1 == found.l2 == found.linf == 0


def test_distortion_refuses_another_unit():
  levels = np.full((1, 2, 2, 1), 200, np.uint8)
  with pytest.raises(UserError, match='attacked pictures.*divide by 255'):
    distortion.distortion(levels, levels.astype(np.float32))


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_a_change_that_fills_its_ball_does_not_exceed_it(norm):
  shape = (20, 32, 32, 3)
  rng = np.random.default_rng(0)
  clean = rng.uniform(0.2, 0.8, shape).astype(np.float32)
  delta = rng.uniform(-1, 1, shape)
  epsilon = {'linf': 8 / 255, 'l2': 0.5, 'l1': 12.0}[norm]
  axes = (1, 2, 3)
  length = {
    'linf': np.abs(delta).max(axes),
    'l2': np.sqrt((delta**2).sum(axes)),
    'l1': np.abs(delta).sum(axes),
  }[norm].reshape(-1, 1, 1, 1)
  for share, expected in ((1.0, False), (1.001, True)):
    moved = clean + (share * epsilon * delta / length).astype(np.float32)
    size = getattr(distortion.distortion(clean, moved), norm)
    found = distortion.exceeds(size, epsilon, norm, 32 * 32 * 3)
    np.testing.assert_array_equal(found, expected)
  assert distortion.exceeds([9, 10], 9, 'l0', 100).tolist() == [False, True]


def test_roundings_of_one_sign_add_up_in_l1():
  epsilons = np.linspace(11, 13, 41)
  sizes = []
  for epsilon in epsilons:
    clean = np.full((1, 32, 32, 3), 0.75, np.float32)
    moved = clean + np.float32(epsilon / clean.size)
    sizes.append(distortion.distortion(clean, moved).l1[0])
  assert (
    np.max(sizes - epsilons) > 5e-5
  )  # What a fixed slack would call too far.
  for size, epsilon in zip(sizes, epsilons, strict=True):
    assert not distortion.exceeds(size, epsilon, 'l1', 32 * 32 * 3)
