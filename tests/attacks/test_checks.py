"""Every warning has a classifier that provokes it; a sound one has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks
from jaxadv.attacks.checks import check
from jaxadv.classifier import from_function
from jaxadv.errors import UserError
from jaxadv.norms import linf_ball

EPSILON = 0.02


@pytest.fixture(scope='module')
def run(trained):
  """Checks what a function makes of the small network's logits."""

  def run(change=lambda logits: logits, **options):
    classifier = from_function(
      lambda variables, images: change(
        trained.classifier.apply(variables, images)
      ),
      trained.classifier.variables,
    )
    return run_on(classifier, **options)

  def run_on(classifier, **options):
    options = {'epsilon': EPSILON, 'num_steps': 5, 'num_queries': 20} | options
    given = trained.images, trained.labels
    return check(jax.random.key(0), classifier, *given, **options)

  run.on = run_on
  return run


def names(report):
  return {finding.name for finding in report.warnings}


def test_a_sound_classifier_gets_no_warning(run, trained):
  report = run(attacked={'transfer': trained.images + 0.0})
  assert not report.warnings
  numbers = report.numbers
  right = jnp.argmax(trained.classifier(trained.images), -1) == trained.labels
  assert numbers['clean_accuracy'] == pytest.approx(float(right.mean()))
  assert numbers['success_transfer'] == 0 <= numbers['output_spread'] < 1e-4
  assert 0 < numbers['success_noise'] < numbers['success_at_0.02'] <= 1
  small, large = numbers['success_at_0.01'], numbers['success_at_0.08']
  assert small < numbers['success_at_0.02'] <= large
  assert np.isfinite(list(numbers.values())).all()


def test_batches_do_not_matter(run):
  whole, parts = run(), run(batch_size=16)
  assert whole.numbers == pytest.approx(parts.numbers, abs=1e-5)


def test_quantised_logits_hide_the_gradient_from_all_but_blind_attacks(run):
  report = run(lambda logits: jnp.round(logits * 4) / 4, num_queries=100)
  assert {'zero_gradients', 'blind_attack_wins'} <= names(report)
  assert report.numbers['zero_gradients'] == 1
  # Pictures move neither by steps nor far by a random start.
  assert report.numbers['success_square'] > report.numbers['success_at_0.02']


def test_saturated_logits_leave_the_cross_entropy_without_gradient(run):
  report = run(lambda logits: 1e4 * jnp.tanh(logits / 4))
  assert {'saturated_logits', 'vanishing_gradients'} <= names(report)
  assert 'zero_gradients' not in names(report)
  assert report.numbers['median_margin'] > 1000


@pytest.mark.parametrize('declared', [True, False])
def test_noise_is_seen_declared_or_not(linear, declared):
  generator = np.random.default_rng(0)

  def noisy(variables, images, *keys):
    logits = linear.classifier.apply(variables, images)
    if declared:
      draw = lambda key: jax.random.normal(key, (3,))
      return logits + jax.vmap(draw)(*keys)
    return logits + generator.normal(size=3)  # Anew at each compilation.

  classifier = from_function(
    noisy, linear.classifier.variables, stochastic=declared
  )
  given = linear.images, linear.labels
  report = check(
    jax.random.key(0), classifier, *given, num_steps=2, num_queries=2
  )
  assert 'random_outputs' in names(report)
  assert report.numbers['output_spread'] > 0.5


def test_success_that_falls_with_epsilon_is_seen(linear):
  def attack(epsilon):
    step_size = jnp.where(epsilon > 0.05, 1e-6, epsilon / 2)
    return attacks.pgd(linf_ball(epsilon), step_size, 3, random_start=False)

  report = check(
    jax.random.key(0), *linear, epsilon=0.04, attack=attack, num_queries=2
  )
  assert names(report) == {'success_falls'}


def test_transferred_pictures_that_beat_a_weak_attack_are_seen(run, trained):
  keys = attacks.picture_keys(jax.random.key(0), jnp.arange(40))
  strong = jax.jit(attacks.pgd(linf_ball(EPSILON), EPSILON / 4, 20))(
    keys, trained.classifier, trained.images, trained.labels
  )
  weak = lambda epsilon: attacks.pgd(linf_ball(epsilon), epsilon / 100, 1)
  report = run(attack=weak, attacked={'transfer': strong.images})
  assert 'black_box_wins' in names(report)
  message = next(
    finding.message
    for finding in report.warnings
    if finding.name == 'black_box_wins'
  )
  assert f'transfer has success {report.numbers["success_transfer"]:.3f}' in (
    message
  )


def test_misuse_is_explained(run, trained):
  with pytest.raises(UserError, match='transfer lie up to 0.1 .* 0.02'):
    run(attacked={'transfer': jnp.abs(trained.images - 0.1)})
  with pytest.raises(UserError, match='transfer have shape'):
    run(attacked={'transfer': trained.images[:3]})
  with pytest.raises(UserError, match='none of the pictures right'):
    wrong = (trained.classifier(trained.images).argmax(-1) + 1) % 4
    check(jax.random.key(0), trained.classifier, trained.images, wrong)
  with pytest.raises(UserError, match=r'labels are int32\[3\]'):
    check(
      jax.random.key(0), trained.classifier, trained.images, trained.labels[:3]
    )
