"""What users give: every border converts it or refuses it in one sentence."""

import functools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.linear_model import RidgeClassifier

from jaxadv import attacks
from jaxadv.attacks import evaluate, pgd
from jaxadv.classifier import (
  Normalise,
  from_function,
  from_linen,
  from_nnx,
  predict,
)
from jaxadv.data.sources import load, subset
from jaxadv.detectors.baselines import log_sensitivity_detector
from jaxadv.detectors.measure import measure
from jaxadv.errors import DataError, DoubtWarning, UserError
from jaxadv.norms import l1_ball, l2_ball, linf_ball
from jaxadv.types import picture_keys
from jaxadv.units import to_float

KEY = jax.random.key(0)
FGSM = attacks.fgsm(8 / 255)


class Digits:
  """An affine model on the digits, right on all of 64 pictures."""

  def __init__(self):
    digits = load('digits', image_size=8, channels=1)
    flat = digits.images.reshape(len(digits.labels), -1) / 255
    model = RidgeClassifier(alpha=100).fit(flat[:900], digits.labels[:900])
    right = model.predict(flat[900:]) == digits.labels[900:]
    self.pictures = subset(digits, 900 + np.flatnonzero(right)[:64])
    self.images, self.labels = self.pictures.images, self.pictures.labels
    self.weights = model.coef_.T.astype(np.float32)
    self.bias = model.intercept_.astype(np.float32)

  def logits(self, images):
    return images.reshape(len(images), -1) @ self.weights + self.bias


@pytest.fixture(scope='module')
def digits():
  return Digits()


def quiet(function, *given, **options):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    return function(*given, **options)


def test_the_unit_of_a_batch_is_told_by_its_dtype(digits):
  keys = picture_keys(KEY, jnp.arange(64))
  attack = jax.jit(pgd(linf_ball(4 / 255), 1 / 255, 10), static_argnums=1)
  for driven in (
    attack,
    jax.jit(
      lambda *given: attacks.drive(
        pgd(linf_ball(4 / 255), 1 / 255, 10), *given, num_slots=16
      ),
      static_argnums=1,
    ),
  ):
    right = driven(keys, digits.logits, to_float(digits.images), digits.labels)
    levels = driven(keys, digits.logits, digits.images, digits.labels)
    np.testing.assert_array_equal(levels.images, right.images)
    assert levels.images.dtype == jnp.float32
    with pytest.raises(UserError, match='images are int32'):
      driven(keys, digits.logits, digits.images.astype(int), digits.labels)


def test_a_batch_of_0_to_255_in_floats_is_refused_where_values_are_known(
  digits,
):
  floats = digits.images.astype(np.float32)
  keys = picture_keys(KEY, jnp.arange(64))
  for call in (
    lambda: FGSM(keys, digits.logits, floats, digits.labels),
    lambda: evaluate(FGSM, KEY, digits.logits, floats, digits.labels),
    lambda: attacks.check(KEY, digits.logits, floats, digits.labels),
    lambda: predict(from_function(digits.logits), floats),
    lambda: attacks.train_patch(
      KEY, digits.logits, floats, digits.labels, size=3
    ),
    lambda: attacks.universal_perturbation(
      KEY, digits.logits, floats, digits.labels, linf_ball(0.1), step_size=0.01
    ),
    lambda: measured(digits, floats),
  ):
    with pytest.raises(
      UserError, match='ranges from 0 to 244 .*divide by 255, or'
    ):
      call()


def measured(digits, attacked):
  return measure(
    KEY,
    log_sensitivity_detector(),
    digits.logits,
    digits.pictures,
    digits.pictures._replace(images=attacked),
  )


def test_measure_takes_floats_for_what_they_are(digits):
  found = evaluate(
    attacks.deepfool(), KEY, digits.logits, digits.images, digits.labels
  )
  rounded = measured(digits, found.images_uint8)
  floats = measured(digits, found.images)
  assert floats.auc == rounded.auc < 1
  np.testing.assert_array_equal(floats.scores, rounded.scores)


def test_float64_pictures_are_float32_pictures(digits):
  run = functools.partial(evaluate, FGSM, KEY, digits.logits)
  double = run(digits.images / 255, digits.labels)
  single = run((digits.images / 255).astype(np.float32), digits.labels)
  np.testing.assert_array_equal(double.images, single.images)


def test_pixels_that_no_one_changed_are_not_counted(digits):
  found = evaluate(
    attacks.lavan(3, 20), KEY, digits.logits, digits.images, digits.labels
  )
  assert 0 < found.l0.max() <= 9


def test_the_curve_in_l1_agrees_with_the_robust_accuracy():
  rng = np.random.default_rng(0)
  images = rng.uniform(0, 1, (64, 32, 32, 3)).astype(np.float32)
  weights = rng.normal(size=(3072, 10)).astype(np.float32)

  def logits(images):
    return 0.1 * (images.reshape(len(images), -1) - 0.5) @ weights

  labels = np.argmax(logits(images), axis=-1)
  found = evaluate(pgd(l1_ball(12.0), 1.5, 40), KEY, logits, images, labels)
  (share,) = attacks.robust_accuracy_curve(found, [12.0], 'l1')
  assert share.value == found.robust_accuracy < 1


def rooted(digits):
  """Finite logits whose gradient is NaN where a pixel is black."""

  def logits(images):
    flat = images.reshape(len(images), -1)
    return jnp.where(flat > 0, jnp.sqrt(flat), 0) @ digits.weights

  return logits


@pytest.mark.parametrize(
  ('attack', 'at_least'),
  [
    (pgd(l2_ball(3.0), 0.5, 20), 0.9),
    (attacks.deepfool(), 1.0),
    (attacks.ddn(100), 1.0),
  ],
  ids=['pgd', 'deepfool', 'ddn'],
)
def test_a_gradient_that_is_nan_counts_as_0_and_is_told(
  digits, attack, at_least
):
  logits = rooted(digits)
  labels = np.asarray(logits(to_float(digits.images)).argmax(-1))
  with pytest.warns(DoubtWarning, match='NaN or infinite at .* count as 0'):
    found = evaluate(attack, KEY, logits, digits.images, labels)
  assert np.isfinite(found.images).all()
  assert found.attack_success_rate >= at_least
  predicted = np.argmax(logits(found.images), axis=-1)
  np.testing.assert_array_equal(predicted != labels, found.success)


def test_trainings_take_a_nan_gradient_as_0(digits):
  with pytest.warns(DoubtWarning, match='count as 0'):
    delta = attacks.universal_perturbation(
      KEY,
      rooted(digits),
      digits.images,
      digits.labels,
      l2_ball(2.0),
      step_size=0.2,
    )
  assert 0 < np.linalg.norm(delta) <= 2.0 + 1e-5
  with pytest.warns(DoubtWarning, match='count as 0'):
    patch = attacks.train_patch(
      KEY, rooted(digits), digits.images, digits.labels, size=3, num_epochs=1
    )
  assert np.isfinite(patch).all()


def test_an_attack_that_gives_nan_is_refused(digits):
  attack = attacks.one_shot(lambda keys, images: images * jnp.nan)
  with pytest.raises(DataError, match='NaN'):
    evaluate(attack, KEY, digits.logits, digits.images, digits.labels)
  attack = attacks.one_shot(lambda keys, images: images + 1)
  with pytest.raises(DataError, match=r'outside \[0, 1\] .* row 0'):
    evaluate(attack, KEY, digits.logits, digits.images, digits.labels)


def test_a_classifier_that_breaks_beside_the_pictures_is_refused(digits):
  def logits(images):
    flat = images.reshape(len(images), -1)
    off_levels = jnp.abs(flat * 255 - jnp.round(flat * 255)) > 0.01
    return jnp.where(off_levels, jnp.nan, flat) @ digits.weights

  with pytest.raises(DataError, match='NaN or infinity for .* with noise'):
    evaluate(attacks.ddn(), KEY, logits, digits.images, digits.labels)


def test_a_classifier_that_breaks_on_attacked_pictures_is_refused(digits):
  def logits(images):
    bright = (images > 0.9).any(axis=(1, 2, 3))
    return jnp.where(bright[:, None], jnp.nan, digits.logits(images))

  attack = attacks.one_shot(lambda keys, images: 1 - images)
  with pytest.raises(DataError, match='NaN or infinity .* clean or attacked'):
    evaluate(attack, KEY, logits, digits.images // 2, digits.labels)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda z: jax.nn.softmax(20 * z), 'look like probabilities'),
    (
      lambda z: jnp.log(jnp.clip(jax.nn.softmax(200 * z), 1e-12, 1)),
      'log-probabilities, of .* rounded to certainty',
    ),
    (lambda z: jnp.repeat(z, 2, axis=-1), 'always equal'),
  ],
)
def test_outputs_that_are_no_logits_are_doubted_everywhere(
  digits, change, words
):
  logits = lambda images: change(digits.logits(images))
  given = (logits, digits.images, digits.labels)
  with pytest.warns(DoubtWarning, match=words):
    evaluate(FGSM, KEY, *given)
  with pytest.warns(DoubtWarning, match=words):
    attacks.train_patch(KEY, *given, size=3, num_epochs=1)


def test_logits_and_log_softmax_are_not_doubted(digits):
  given = (digits.images, digits.labels)
  quiet(evaluate, FGSM, KEY, digits.logits, *given)
  mild = lambda images: jax.nn.log_softmax(digits.logits(images))
  quiet(evaluate, FGSM, KEY, mild, *given)


def test_a_classifier_that_normalises_with_its_batch_is_told(digits):
  def logits(images):
    flat = images.reshape(len(images), -1)
    return (flat - flat.mean(0)) / (flat.std(0) + 0.1) @ digits.weights

  with pytest.warns(DoubtWarning, match='depend on the others in its batch'):
    evaluate(FGSM, KEY, logits, digits.images, digits.labels)


def test_check_tells_what_else_is_doubtful(digits):
  def outputs(images):
    flat = images.reshape(len(images), -1)
    logits = (flat - flat.mean(0)) / (flat.std(0) + 0.1) @ digits.weights
    return jax.nn.softmax(logits)

  report = attacks.check(
    KEY, outputs, digits.images, digits.labels, num_queries=2, num_steps=1
  )
  names = [finding.name for finding in report.warnings]
  assert {'batch_dependent', 'doubtful_outputs'} <= set(names)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda z: (z, z), r'returns a tuple \(.*\) but must return logits alone'),
    (lambda z: {'logits': z}, 'returns a dict'),
    (lambda z: z[:, :1], 'one logit a picture'),
    (lambda z: z.mean(axis=1), 'must return logits'),
    (lambda z: z[:, :, None], 'must return logits'),
    (lambda z: np.asarray(z), 'use jax.numpy in it, not numpy'),
    (lambda z: z @ jnp.ones((3, 3)), 'fails on pictures of 8x8x1'),
  ],
)
def test_outputs_that_cannot_be_logits_are_refused(digits, change, words):
  logits = lambda images: change(digits.logits(images))
  with pytest.raises(UserError, match=words):
    evaluate(FGSM, KEY, logits, digits.images, digits.labels)
  if 'fails' not in words and 'numpy' not in words:
    keys = picture_keys(KEY, jnp.arange(64))
    for classifier in (logits, from_function(logits)):
      with pytest.raises(UserError, match=words):
        jax.jit(FGSM, static_argnums=1)(
          keys, classifier.__call__, digits.images, digits.labels
        )


def test_a_training_checks_its_labels(digits):
  for train in (
    functools.partial(attacks.train_patch, size=3),
    functools.partial(
      attacks.universal_perturbation, ball=linf_ball(0.1), step_size=0.01
    ),
  ):
    with pytest.raises(UserError, match='labels hold 10 .* classes 0 to 9'):
      train(
        KEY, digits.logits, digits.images, labels=np.full(64, 10), targeted=True
      )


@pytest.mark.parametrize(
  ('attack', 'words'),
  [
    ('pgd', "attack is 'pgd' .* attacks.make\\('pgd'"),
    (pgd, 'if pgd makes attacks, call it first'),
    (None, 'attack is None'),
  ],
)
def test_what_is_no_attack_is_told(digits, attack, words):
  with pytest.raises(UserError, match=words):
    evaluate(attack, KEY, digits.logits, digits.images, digits.labels)


@pytest.mark.parametrize('key', [0, None, 'seed', np.zeros(2)])
def test_what_is_no_key_is_told(digits, key):
  for call in (
    lambda: evaluate(FGSM, key, digits.logits, digits.images, digits.labels),
    lambda: picture_keys(key, jnp.arange(3)),
    lambda: attacks.check(key, digits.logits, digits.images, digits.labels),
  ):
    with pytest.raises(UserError, match=r'give jax.random.key\(0\)'):
      call()


def test_the_older_keys_are_keys_too(digits):
  attack = pgd(linf_ball(0.1), num_steps=2)
  run = lambda key: evaluate(
    attack, key, digits.logits, digits.images, digits.labels
  )
  old = run(jax.random.PRNGKey(3))
  np.testing.assert_array_equal(old.images, run(jax.random.key(3)).images)


def test_one_key_for_a_batch_is_told(digits):
  with pytest.raises(UserError, match='one key a picture.*picture_keys'):
    FGSM(KEY, digits.logits, digits.images, digits.labels)


def test_at_epsilon_0_pictures_stay_clean(digits):
  labels = digits.labels.copy()
  labels[:5] = (labels[:5] + 1) % 10
  clean, moved = attacks.evaluate_over(
    lambda epsilon: pgd(linf_ball(epsilon), epsilon / 4, 10),
    [0, 8 / 255],
    KEY,
    digits.logits,
    digits.images,
    labels,
  )
  np.testing.assert_array_equal(clean.images_uint8, digits.images)
  assert clean.l0.max() == 0
  assert clean.robust_accuracy == clean.clean_accuracy == 59 / 64
  assert moved.robust_accuracy < 0.9


def test_an_evaluation_shows_figures_and_saves_pictures(digits, tmp_path):
  found = evaluate(FGSM, KEY, digits.logits, digits.images, digits.labels)
  assert len(repr(found)) < 300
  assert 'Evaluation of 64 pictures of 8x8x1' in repr(found)
  paths = found.save_pngs(tmp_path / 'digits' / '0')
  again = load(str(tmp_path / 'digits'), channels=1)
  np.testing.assert_array_equal(again.images, found.images_uint8)
  assert len(paths) == 64


class Net(nn.Module):
  @nn.compact
  def __call__(self, images, train):
    x = nn.Dense(8)(images.reshape(len(images), -1))
    x = nn.BatchNorm(use_running_average=not train)(x)
    return nn.Dense(10)(x)


def test_a_linen_module_may_want_more_than_pictures(digits):
  net = Net()
  variables = net.init(KEY, digits.images[:1] / 255, train=False)
  with pytest.raises(UserError, match='requires train; .* call_arguments'):
    from_linen(net, variables)
  with pytest.raises(UserError, match='takes no training; .* takes train'):
    from_linen(net, variables, call_arguments={'train': 0, 'training': 0})
  classifier = from_linen(net, variables, call_arguments={'train': False})
  expected = net.apply(variables, to_float(digits.images), False)
  np.testing.assert_allclose(
    predict(classifier, digits.images), expected, rtol=1e-5, atol=1e-5
  )
  features = classifier.features(to_float(digits.images), ['Dense_1'])
  np.testing.assert_allclose(
    features['Dense_1'], expected, rtol=1e-5, atol=1e-5
  )
  training = from_linen(net, variables, call_arguments={'train': True})
  with pytest.raises(UserError, match='the classifier fails on .*batch_stats'):
    evaluate(FGSM, KEY, training, digits.images, digits.labels)


def test_mixed_up_wrappers_are_told(digits):
  net = Net()
  with pytest.raises(UserError, match='with the keys .*Dense_0.*params'):
    from_linen(net, {'Dense_0': {}}, call_arguments={'train': False})
  with pytest.raises(UserError, match='the class Net but must be an instance'):
    from_linen(Net, {'params': {}})
  with pytest.raises(UserError, match='there are from_linen'):
    from_nnx(net)
  with pytest.raises(UserError, match='go to from_linen'):
    from_function(net)
  with pytest.raises(UserError, match='wrap it with from_linen'):
    evaluate(FGSM, KEY, net, digits.images, digits.labels)


class Dropping(nnx.Module):
  def __init__(self, rngs):
    self.dense = nnx.Linear(64, 10, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, images):
    return self.dense(self.dropout(images.reshape(len(images), -1)))


def test_an_nnx_model_in_train_mode_is_put_into_inference_mode(digits):
  model = Dropping(nnx.Rngs(0))
  labels = predict(model, digits.images).argmax(-1)
  found = quiet(evaluate, FGSM, KEY, model, digits.images, labels)
  wrapped = evaluate(FGSM, KEY, from_nnx(model), digits.images, labels)
  np.testing.assert_array_equal(found.images, wrapped.images)


@jax.tree_util.register_pytree_node_class
class Module:
  """A pytree with functions among its leaves, as Equinox has them."""

  def __init__(self, weights, activation):
    self.weights, self.activation = weights, activation

  def tree_flatten(self):
    return (self.weights, self.activation), None

  @classmethod
  def tree_unflatten(cls, _, leaves):
    return cls(*leaves)

  def __call__(self, images):
    flat = images.reshape(len(images), -1)
    return self.activation(flat @ self.weights)


def test_variables_may_hold_functions(digits):
  module = Module(jnp.asarray(digits.weights), jnp.tanh)
  expected = jnp.tanh(to_float(digits.images).reshape(64, -1) @ digits.weights)
  classifier = from_function(lambda module, images: module(images), module)
  np.testing.assert_allclose(
    predict(classifier, digits.images), expected, rtol=1e-5, atol=1e-6
  )
  wrapped = evaluate(FGSM, KEY, classifier, digits.images, digits.labels)
  bare = evaluate(FGSM, KEY, module, digits.images, digits.labels)
  np.testing.assert_array_equal(wrapped.images, bare.images)


@pytest.mark.parametrize(
  ('hide', 'words'),
  [
    (lambda logits, x: logits(jnp.round(x * 255) / 255), 'gradient is 0 at 8'),
    (lambda logits, x: 1e4 * logits(x), 'cross-entropy has no gradient at 8'),
  ],
)
def test_a_gradient_that_is_hidden_is_told(digits, hide, words):
  logits = lambda images: hide(digits.logits, images)
  with pytest.warns(DoubtWarning, match=words):
    evaluate(FGSM, KEY, logits, digits.images, digits.labels)
  with pytest.warns(DoubtWarning, match=words):
    attacks.universal_perturbation(
      KEY, logits, digits.images, digits.labels, 0.1, num_epochs=1
    )


def test_a_classifier_that_guesses_is_told(digits):
  wrong = (digits.labels + 1) % 10
  with pytest.warns(
    DoubtWarning, match='right on 0.0% .* better than guessing'
  ):
    evaluate(FGSM, KEY, digits.logits, digits.images, wrong)
  constant = lambda images: jnp.tile(jnp.arange(10.0), (len(images), 1))
  with pytest.warns(DoubtWarning, match='better than guessing among 10'):
    evaluate(FGSM, KEY, constant, digits.images, digits.labels)


def test_a_classifier_that_calls_back_to_python_is_attacked_by_queries(digits):
  def logits(images):
    shape = jax.ShapeDtypeStruct((len(images), 10), jnp.float32)
    return jax.pure_callback(
      lambda x: np.asarray(digits.logits(np.asarray(x))), shape, images
    )

  with pytest.raises(UserError, match='by queries, with square or hsv'):
    evaluate(FGSM, KEY, logits, digits.images, digits.labels)
  found = quiet(
    evaluate,
    attacks.square(8 / 255, 20),
    KEY,
    logits,
    digits.images,
    digits.labels,
  )
  assert found.attack_success_rate > 0


def test_curves_are_of_untargeted_attacks_within_what_was_tried(digits):
  run = functools.partial(evaluate, key=KEY, classifier=digits.logits)
  given = {'images': digits.images, 'labels': digits.labels}
  targeted = run(
    attacks.fgsm(8 / 255, targeted=True),
    targets=(digits.labels + 1) % 10,
    **given,
  )
  with pytest.raises(UserError, match='targeted, whose successes'):
    attacks.robust_accuracy_curve(targeted, [0.1], 'linf')
  small = run(attacks.fgsm(1 / 255), **given)
  with pytest.warns(DoubtWarning, match='nothing was tried beyond 0.00392'):
    attacks.robust_accuracy_curve(small, [1 / 255, 8 / 255], 'linf')
  quiet(attacks.robust_accuracy_curve, small, [1 / 255], 'linf')
  nearest = run(attacks.ddn(20), **given)
  quiet(attacks.robust_accuracy_curve, nearest, [0.1, 100], 'l2')
  with pytest.raises(UserError, match='must be numbers such as 8 / 255'):
    attacks.robust_accuracy_curve(small, ['8/255'], 'linf')


def test_a_normalisation_of_0_to_255_is_refused():
  with pytest.raises(UserError, match='divide mean and std by 255'):
    Normalise((123.0, 116.0, 103.0), (58.0, 57.0, 57.0))
  with pytest.raises(UserError, match='std is .* must be above 0'):
    Normalise((0.5,), (0.0,))
  with pytest.raises(UserError, match='3 means .* have 1 channel'):
    Normalise((0.5,) * 3, (0.5,) * 3)(jnp.zeros((1, 4, 4, 1)))


def test_measure_tells_what_does_not_fit(digits):
  pictures = digits.pictures
  others = pictures._replace(source=pictures.source + 10_000)
  detector = log_sensitivity_detector()
  with pytest.warns(DoubtWarning, match='source id of a clean one'):
    measure(KEY, detector, digits.logits, pictures, others)
  with pytest.raises(UserError, match='call the function that makes it'):
    measure(KEY, log_sensitivity_detector, digits.logits, pictures, pictures)
  with pytest.raises(UserError, match='without images, labels, source'):
    measure(KEY, detector, digits.logits, pictures, digits.images)


@pytest.mark.parametrize('num_left', [2, 3, 5])
@pytest.mark.parametrize('masked', [-np.inf, -1e9])
def test_classes_may_be_masked(digits, num_left, masked):
  rows = digits.labels < num_left
  images, labels = digits.images[rows], digits.labels[rows]
  left = jnp.arange(10) < num_left

  def logits(images):
    return jnp.where(left, digits.logits(images), masked)

  def alone(images):
    return digits.logits(images)[:, :num_left]

  run = functools.partial(evaluate, key=KEY, images=images, labels=labels)
  ball = linf_ball(64 / 255)
  wanted = run(pgd(ball, loss='margin'), classifier=alone).robust_accuracy
  assert wanted < 0.9
  for attack in (
    attacks.apgd_t(ball, 20),
    attacks.apgd(ball, 20, loss='dlr'),
    pgd(ball, loss='dlr'),
  ):
    found = run(attack, classifier=logits).robust_accuracy
    assert found <= wanted + 0.1


def test_luck_of_a_stochastic_classifier_is_no_success(digits):
  def logits(images, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (10,)))(keys)
    return digits.logits(images) + 0.3 * noise

  report = attacks.check(
    KEY,
    from_function(logits, stochastic=True),
    digits.images,
    digits.labels,
    epsilon=1e-5,
    num_steps=2,
    num_queries=50,
  )
  assert report.numbers['success_square'] < 0.7
  assert 'blind_attack_wins' not in [f.name for f in report.warnings]


def test_a_place_in_the_batch_that_matters_is_told(digits):
  def logits(images):
    noise = jax.random.normal(jax.random.key(1), images.shape)
    return digits.logits(images + 0.3 * noise)

  with pytest.warns(DoubtWarning, match='or on its place there'):
    evaluate(FGSM, KEY, logits, digits.images, digits.labels)


def test_nearly_black_pictures_are_doubted(digits):
  with pytest.warns(DoubtWarning, match='no value above 1, nearly black'):
    evaluate(
      FGSM,
      KEY,
      digits.logits,
      (digits.images > 127).astype(np.uint8),
      digits.labels,
    )


def test_a_classifier_takes_8_bit_pictures(digits):
  classifier = from_function(digits.logits)
  wanted = classifier(to_float(digits.images))
  np.testing.assert_array_equal(classifier(digits.images), wanted)
  np.testing.assert_array_equal(jax.jit(classifier)(digits.images), wanted)
  with pytest.raises(UserError, match='divide by 255'):
    classifier(digits.images.astype(np.float32))


def test_an_epsilon_that_is_not_used_is_told(digits):
  given = (KEY, digits.logits, digits.images, digits.labels)
  with pytest.warns(DoubtWarning, match='same pictures at all epsilons'):
    attacks.evaluate_over(lambda epsilon: FGSM, [1 / 255, 8 / 255], *given)
  quiet(attacks.evaluate_over, attacks.fgsm, [1 / 255, 8 / 255], *given)
