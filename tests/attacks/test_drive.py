"""The refilled slots themselves, with an attack that only counts."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.attacks import drive
from jaxadv.types import Attack, AttackResult


class Counting(NamedTuple):
  left: jax.Array
  steps: jax.Array
  done: jax.Array


def counting(widths, max_steps=100):
  """Takes as many steps for a row as its label says; notes how many step."""

  def init(keys, classifier, images, labels):
    del keys, classifier, images
    return Counting(labels, jnp.zeros_like(labels), labels == 0)

  def step(classifier, images, labels, state):
    del classifier, images
    jax.debug.callback(lambda n=len(labels): widths.append(n), ordered=True)
    left = jnp.where(state.done, state.left, state.left - 1)
    steps = jnp.where(state.done, state.steps, state.steps + 1)
    return Counting(left, steps, left == 0)

  def finish(classifier, images, labels, state):
    del classifier, labels
    counted = images + state.steps[:, None, None, None]
    return AttackResult(counted, state.left == 0)

  return Attack(init, step, finish, max_steps)


@pytest.mark.parametrize('num_slots', [2, 3, 8, 16])
def test_every_row_takes_its_steps(num_slots):
  needed = jax.random.randint(jax.random.key(0), (40,), 0, 9)
  found = jax.jit(
    lambda labels: drive(
      counting([]),
      jax.random.split(jax.random.key(1), 40),
      lambda images: images,
      jnp.zeros((40, 1, 1, 1)),
      labels,
      num_slots=num_slots,
    )
  )(needed)
  np.testing.assert_array_equal(found.images[:, 0, 0, 0], needed)
  assert found.success.all()


@pytest.mark.parametrize('hard_row', [0, 39])
def test_the_last_rows_step_in_fewer_slots(hard_row):
  widths = []
  labels = jnp.ones(40, jnp.int32).at[hard_row].set(60)
  found = jax.jit(
    lambda labels: drive(
      counting(widths),
      jax.random.split(jax.random.key(1), 40),
      lambda images: images,
      jnp.zeros((40, 1, 1, 1)),
      labels,
      num_slots=16,
    )
  )(labels)
  jax.block_until_ready(found)
  jax.effects_barrier()
  assert found.images[hard_row, 0, 0, 0] == 60
  assert sorted(set(widths)) == [4, 16]
  # Three turns for those that end at once; the rest belongs to the hard one.
  assert widths.count(16) == 3
  assert 57 <= widths.count(4) <= 59


@pytest.mark.parametrize('num_rows', [40, 32])
def test_slots_show_the_classifier_no_more_pictures_than_slots(num_rows):
  shown = []

  def classifier(images):
    shown.append(len(images))
    return images.reshape(-1, 1) * jnp.array([1.0, 2.0])

  def judging(classifier, images, labels, state):
    logits = classifier(images)
    return AttackResult(images + logits[:, 1, None, None, None], state.done)

  images = jnp.arange(num_rows, dtype=jnp.float32)[:, None, None, None] / 64
  found = drive(
    dataclasses.replace(counting([]), finish=judging),
    jax.random.split(jax.random.key(1), num_rows),
    classifier,
    images,
    jnp.ones(num_rows, jnp.int32),
    num_slots=16,
  )
  assert set(shown) == {16}
  np.testing.assert_array_equal(found.images, 3 * images)
