"""An attack of one's own that is wrong fails while it is traced."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from jaxadv.attacks import drive
from jaxadv.errors import UserError
from jaxadv.types import Attack, AttackResult, picture_keys

NUM = 6
IMAGES = jnp.full((NUM, 4, 4, 1), 0.5)
LABELS = jnp.zeros(NUM, jnp.int32)
KEYS = picture_keys(jax.random.key(0), jnp.arange(NUM))


class State(NamedTuple):
  images: jax.Array
  done: jax.Array


ATTACK = Attack(
  lambda keys, classifier, images, labels: State(images, labels > 0),
  lambda classifier, images, labels, state: state._replace(
    images=state.images / 2
  ),
  lambda classifier, images, labels, state: AttackResult(*state),
  max_steps=2,
)


def classify(images):
  return images.reshape(len(images), -1)[:, :3]


def traced(attack, num_slots=None):
  """Traces an attack; computes nothing."""
  run = lambda *given: drive(
    attack, given[0], classify, *given[1:], num_slots=num_slots
  )
  return jax.eval_shape(run, KEYS, IMAGES, LABELS)


def gives(value):
  return lambda *arguments: value


# A function of an attack, what it gives, and a part of the sentence.
WRONG_OUTPUTS = [
  ('init', State(IMAGES, jnp.zeros((), bool)), 'init .* axis of 6: .*done'),
  ('init', State(IMAGES[:5], LABELS > 0), 'init .* axis of 6: .*images'),
  ('init', State(0.5, LABELS > 0), 'init gives needs a leading axis of 6'),
  ('init', State(IMAGES, LABELS), r'done, bool\[6\]: .* int32'),
  ('init', State(IMAGES, IMAGES > 0), r'done, bool\[6\]: .*\(6, 4, 4, 1\)'),
  ('init', (IMAGES, LABELS), r'done, bool\[6\]: .* no attribute'),
  ('step', State(IMAGES[:, :2], LABELS > 0), r'step must .*\(6, 2, 4, 1\)'),
  ('step', (IMAGES, LABELS > 0), 'step must give a state of the shapes'),
  ('finish', (IMAGES, LABELS > 0), 'finish gives a tuple .* AttackResult'),
  ('finish', AttackResult(IMAGES[:2], LABELS > 0), r'images .*\(2, 4, 4, 1\)'),
  ('finish', AttackResult(IMAGES > 0, LABELS > 0), 'images that .* bool'),
  ('finish', AttackResult(IMAGES, LABELS), r'success .* bool\[6\]: .* int32'),
  ('finish', AttackResult(IMAGES, jnp.zeros(2, bool)), r'success .*\(2,\)'),
]


@pytest.mark.parametrize(('function', 'value', 'words'), WRONG_OUTPUTS)
def test_wrong_outputs_are_a_sentence(function, value, words):
  attack = dataclasses.replace(ATTACK, **{function: gives(value)})
  with pytest.raises(UserError, match=words):
    traced(attack)


@pytest.mark.parametrize('num_slots', [None, 2])
def test_a_right_attack_is_left_alone(num_slots):
  found = traced(ATTACK, num_slots)
  assert found.images.shape == IMAGES.shape
  assert (found.success.shape, found.success.dtype) == ((NUM,), bool)


def test_slots_are_checked_too():
  wrong = lambda classifier, images, labels, state: state._replace(
    images=state.images[:1]
  )
  with pytest.raises(UserError, match=r'step must .*\(1, 4, 4, 1\)'):
    traced(dataclasses.replace(ATTACK, step=wrong), num_slots=3)


# Arguments of `init` that a driver would have converted or refused.
WRONG_ARGUMENTS = [
  ({'keys': KEYS[:2]}, r'keys must be key\[6\].*\(2,\)'),
  ({'keys': KEYS[0]}, r'keys must be key\[6\]'),
  ({'keys': jnp.zeros(NUM)}, r'keys must be key\[6\], .* float32'),
  ({'keys': None}, r'keys must be key\[6\]'),
  ({'images': IMAGES[0]}, 'images must be .* rank 3'),
  ({'images': (255 * IMAGES).astype(jnp.uint8)}, 'images must be .* uint8'),
  ({'labels': LABELS[:2]}, r'labels must be int32\[6\]'),
  ({'labels': jax.nn.one_hot(LABELS, 3)}, r'labels must be .*\(6, 3\)'),
  ({'labels': LABELS.astype(jnp.float32)}, 'labels must be .* float32'),
]


@pytest.mark.parametrize(('changed', 'words'), WRONG_ARGUMENTS)
@pytest.mark.parametrize('name', ['init', 'start'])
def test_whoever_calls_init_or_start_gets_a_sentence(name, changed, words):
  given = {'keys': KEYS, 'images': IMAGES, 'labels': LABELS}
  keys, images, labels = (given | changed).values()
  function = getattr(ATTACK, name)
  with pytest.raises(UserError, match=words):
    function(keys, classify, images, labels)


def test_checks_leave_nothing_in_what_is_compiled():
  given = IMAGES, LABELS, State(IMAGES, LABELS > 0)
  checked, unchecked = (
    str(jax.make_jaxpr(functools.partial(step, classify))(*given))
    for step in (ATTACK.step, ATTACK.step.__wrapped__)
  )
  assert checked == unchecked
