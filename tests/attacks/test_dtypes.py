"""With 64 bits switched on, attacks do as they do without."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jaxadv import attacks, losses, norms
from jaxadv.attacks import drive
from jaxadv.classifier import from_function
from jaxadv.types import picture_keys

from . import cases

MORE = {
  'auto_attack': lambda: attacks.auto_attack(0.02, num_steps=3, num_queries=8),
  'auto_attack_l2': lambda: attacks.auto_attack(
    0.3, 'l2', num_steps=3, num_queries=8
  ),
  'fab': lambda: attacks.fab('linf', 4, targeted=True),
  'apgd_dlr': lambda: attacks.apgd(0.02, 4, loss=losses.dlr),
  'restarts': lambda: attacks.restarts(attacks.pgd(0.02, num_steps=2), 2),
  'smallest': lambda: attacks.over(
    lambda norm: attacks.ddn(3, init_norm=norm),
    (0.2, 0.4),
    smallest=norms.l2,
  ),
  'square_linf': lambda: attacks.square(0.1, 8),
  **{
    f'registry_{name}': functools.partial(attacks.make, name)
    for name in ('pgd', 'lavan', 'carlini_wagner_linf')
  },
}
BUILDS = {
  **{case.name: functools.partial(cases.build, case) for case in cases.CASES},
  **MORE,
}


def given(trained, num=8):
  keys = picture_keys(jax.random.key(0), jnp.arange(num))
  return keys, trained.images[:num], trained.labels[:num]


def wide_parts(jaxpr):
  """Names operations that give float64 numbers or draw 64 bits."""
  for equation in jaxpr.eqns:
    draws = equation.params.get('bit_width') == 64
    wide = any(
      # Python's numbers are weak and take the dtype of what they meet.
      value.aval.dtype == jnp.float64 and not value.aval.weak_type
      for value in equation.outvars
      if hasattr(value.aval, 'weak_type')
    )
    if draws or wide:
      yield f'{equation.primitive} {[str(v.aval) for v in equation.outvars]}'
    for inner in jaxprs_in_params(equation.params):
      yield from wide_parts(inner)


def with_weights(classifier, dtype):
  """A classifier with its weights in another dtype, made under 64 bits."""
  weights = jax.tree.map(
    lambda leaf: jnp.asarray(np.asarray(leaf), dtype), classifier.variables
  )
  return dataclasses.replace(classifier, variables=weights)


@pytest.mark.parametrize('num_slots', [None, 2])
@pytest.mark.parametrize('name', BUILDS)
def test_nothing_is_computed_or_drawn_in_64_bits(name, num_slots, trained):
  keys, images, labels = given(trained)
  with jax.enable_x64(True):
    attack = BUILDS[name]()
    run = lambda *given: drive(attack, *given, num_slots=num_slots)
    traced = jax.make_jaxpr(run)(keys, trained.classifier, images, labels)
    wide = with_weights(trained.classifier, jnp.float64)
    result = jax.eval_shape(run, keys, wide, images, labels)
  assert not [*wide_parts(traced.jaxpr)]
  assert result.images.dtype == jnp.float32


def test_parts_in_64_bits_are_seen(trained):
  with jax.enable_x64(True):
    keys, images, _ = given(trained)
    wide = lambda: images * np.float64(0.5)
    draws = lambda: jax.vmap(jax.random.uniform)(keys).astype(jnp.float32)
    narrow = lambda: jnp.clip(0.5 * images, 0, 1)
    found = [
      bool([*wide_parts(jax.make_jaxpr(part)().jaxpr)])
      for part in (wide, draws, narrow)
    ]
  assert found == [True, True, False]


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[] if name == 'ddn' else [pytest.mark.slow])
    for name in BUILDS
  ],
)
def test_results_are_those_without_64_bits(name, trained):
  keys, images, labels = given(trained, 24)
  run = lambda classifier: jax.jit(
    lambda *given: drive(BUILDS[name](), *given)
  )(keys, classifier, images, labels)
  expected = run(trained.classifier)
  with jax.enable_x64(True):
    single = run(trained.classifier)
    double = run(with_weights(trained.classifier, jnp.float64))
  np.testing.assert_array_equal(single.success, expected.success)
  close = np.abs(single.images - expected.images) <= 1e-5
  assert close.mean() > 0.999
  assert np.abs(double.success ^ expected.success).mean() <= 1 / 24


def test_views_and_evaluations_run_in_64_bits(trained):
  num = 8
  keys, images, labels = given(trained, num)

  def noisy(classifier, images, keys):
    draw = lambda key: jax.random.normal(key, images.shape[1:])
    return classifier(images + 0.01 * jax.vmap(draw)(keys))

  def score(images):
    return images[:, 0, 0, 0] - 2

  rounding = attacks.bpda(lambda images: jnp.round(images * 255) / 255)
  views = {
    'plain': trained.classifier,
    'eot': attacks.eot(
      from_function(noisy, trained.classifier, stochastic=True), 2
    ),
    'bpda': from_function(lambda images: trained.classifier(rounding(images))),
    'joint': attacks.joint_classifier(trained.classifier, score),
  }
  attack = attacks.pgd(0.02, num_steps=2)
  with jax.enable_x64(True):
    for name, view in views.items():
      jax.eval_shape(attack, keys, view, images, labels)
      assert name
    jax.eval_shape(
      attacks.evading(attack, score),
      keys,
      views['eot'],
      *given(trained, num)[1:],
    )
    found = attacks.evaluate(
      attack, jax.random.key(0), trained.classifier, images, labels
    )
  expected = attacks.evaluate(
    attack, jax.random.key(0), trained.classifier, images, labels
  )
  np.testing.assert_array_equal(found.images_uint8, expected.images_uint8)
