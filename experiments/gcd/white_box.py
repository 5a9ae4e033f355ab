"""The white box: attacks that know the classifier, the detectors, the repair.

Which detectors stand guard is an argument of the compiled attack, so one
program an attack serves the classifier alone, each detector and the ensemble.
So are the detectors' weights: each of the run's trainings defends a share of
the pictures.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from experiments.common import detectors as common
from experiments.gcd import detectors, repair
from experiments.gcd.config import MINIMAL, Config, build_attack, numbers
from experiments.gcd.pictures import RunInputs, stream, targets_of
from jaxadv import attacks, storage
from jaxadv.attacks.adaptive import evading, joint_classifier
from jaxadv.attacks.drive import Composite
from jaxadv.attacks.rows import keep_done
from jaxadv.classifier import Classifier, from_function
from jaxadv.data import sources
from jaxadv.data.batching import map_batches
from jaxadv.data.sources import Pictures
from jaxadv.defences import rectifier
from jaxadv.detectors.entropy_ensemble import (
  certain_sum,
  more_certain,
  temperature,
)
from jaxadv.errors import DataError
from jaxadv.metrics import roc
from jaxadv.norms import l2
from jaxadv.training import mesh
from jaxadv.types import Attack, AttackResult, Detector, PyTree, picture_keys
from jaxadv.units import to_float

# Which of DET_IS and DET_org stand guard.
ACTIVE_DETECTORS = {
  'no detector': (False, False),
  'DET_IS': (True, False),
  'DET_org': (False, True),
  'GCD': (True, True),
}
# PGD's step as a share of its radius: with the paper's 0.01 of 0.3 it has not
# arrived after 400 steps.
STEP = 0.1
# Of the budget curve of PGD-U, in shares of the run's epsilon.
SHARES = (0.25, 0.5)
# What is tried with fewer steps, and by which their number is divided.
STEPPED = ('pgd_t', 'ddn_t')
DIVISORS = (8, 4, 2)
# What nobody guards is this far from being flagged.
_NEVER_FLAGGED = 1e4


@struct.dataclass
class DetectorScore:
  """DET_IS, DET_org or both as one score, positive where a picture is flagged.

  With both, the defence takes the logit of the more certain one, which jumps
  from the one to the other. An attacker has two objectives in its place, of
  the same sign as a guard of one detector: the larger logit, below 0 only if
  neither detector flags the picture, and the sum, below 0 exactly if the rule
  is.

  Attributes:
    classifier: The victim.
    states: Of DET_IS and DET_org.
    temperatures: float32[2], which calibrate their logits.
    used: bool[2], which of them stand guard.
    summed: bool, whether gradient and value are those of the sum; else the
      gradient is that of the larger logit, the value that of the rule.
    detectors: DET_IS and DET_org.
    smooth: Whether the gradient takes DET_IS's surrogate, with softplus for
      ReLU; else it is that of second order as it is.
  """

  classifier: Classifier | None
  states: tuple[Any, Any]
  temperatures: jax.Array
  used: jax.Array
  summed: jax.Array
  detectors: tuple[Detector, Detector] = struct.field(pytree_node=False)
  smooth: bool = struct.field(pytree_node=False, default=True)

  def logits(self, images: jax.Array) -> jax.Array:
    """Gives the calibrated logits, float32[2, B]; 0 of one not in use."""
    found = []
    for i, (detector, state) in enumerate(
      zip(self.detectors, self.states, strict=True)
    ):
      score = (self.smooth and detector.surrogate) or detector.score

      def asked(images, score=score, state=state, i=i):
        logits = score(None, self.classifier, state, images)
        return logits / self.temperatures[i]

      # Who does not stand guard costs nothing.
      found.append(
        jax.lax.cond(
          self.used[i], asked, lambda images: jnp.zeros(len(images)), images
        )
      )
    return jnp.stack(found)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Scores pictures, float32[B]; of one sign whatever the objective."""
    logits = self.logits(images)
    largest = jnp.max(
      jnp.where(self.used[:, None], logits, -_NEVER_FLAGGED), axis=0
    )
    total = certain_sum(*logits)
    value = jnp.where(self.summed, total, more_certain(*logits))
    value = jnp.where(jnp.any(self.used), value, -_NEVER_FLAGGED)
    slope = jnp.where(self.summed, total, largest)
    return jax.lax.stop_gradient(value - slope) + slope


class WhiteBox(NamedTuple):
  """What the white box attacks: picture i meets training i modulo their number.

  Attributes:
    guards: The detectors of every training, both in use.
    pictures: Test pictures; for each training first such as it does not flag
      when clean.
    targets: int32[n], classes to reach.
    quiet: bool[n], whether neither detector that the picture meets flags it
      when clean; the others count nowhere.
    flagged: {active: bool[trainings, N]}, which of all clean test pictures are
      flagged.
    areas: {active: float64[trainings]}, AUC in per cent on the validation
      pictures, of all attacks of the run.
  """

  guards: tuple[DetectorScore, ...]
  pictures: Pictures
  targets: np.ndarray
  unflagged_when_clean: np.ndarray
  flagged: dict[str, np.ndarray]
  areas: dict[str, np.ndarray]

  @property
  def training(self) -> np.ndarray:
    """Which training each picture meets, int[n]."""
    return np.arange(len(self.unflagged_when_clean)) % len(self.guards)


class _Fitted(NamedTuple):
  """A pair of detectors after one training.

  Attributes:
    guard: They.
    clean: float32[2, N], calibrated logits on the clean test pictures.
    valid: float32[2, V], on the validation pictures.
    attacked: bool[V], which of those are attacked.
  """

  guard: DetectorScore
  clean: np.ndarray
  valid: np.ndarray
  attacked: np.ndarray


def white_box(inputs: RunInputs) -> WhiteBox:
  """Fits the detectors on all attacks, or finds them; picks the pictures."""
  config = inputs.config
  fitted = [_fitted(inputs, seed) for seed in range(config.num_seeds)]
  unflagged_when_clean = np.stack(
    [(pair.clean <= 0).all(axis=0) for pair in fitted]
  )
  rows = dealt(unflagged_when_clean, config.white_pictures)
  pictures = sources.subset(inputs.clean['test'], rows)
  training = np.arange(len(rows)) % len(fitted)
  return WhiteBox(
    tuple(pair.guard for pair in fitted),
    pictures,
    targets_of(config, pictures),
    unflagged_when_clean[training, rows],
    {
      active: np.stack([flagged(active, pair.clean) for pair in fitted])
      for active in ACTIVE_DETECTORS
    },
    {
      active: np.array(
        [
          100 * float(roc.auc(decisive(active, pair.valid), pair.attacked))
          for pair in fitted
        ]
      )
      for active, used in ACTIVE_DETECTORS.items()
      if any(used)
    },
  )


def _fitted(inputs: RunInputs, seed: int) -> _Fitted:
  """Fits both detectors in one training, or finds them."""
  learnt = [
    detectors.learn_pooled(inputs, name, seed) for name in ('is', 'org')
  ]
  temperatures = np.asarray(
    [temperature(found.valid, found.valid_attacked) for found in learnt],
    np.float32,
  )
  guard = DetectorScore(
    classifier=inputs.victim.classifier,
    states=(learnt[0].state, learnt[1].state),
    temperatures=jnp.asarray(temperatures),
    used=jnp.ones(2, bool),
    summed=jnp.asarray(False),
    detectors=(learnt[0].detector, learnt[1].detector),
  )
  calibrated = lambda logits: np.stack(logits) / temperatures[:, None]
  return _Fitted(
    guard,
    calibrated([found.scores['clean'] for found in learnt]),
    calibrated([found.valid for found in learnt]),
    learnt[0].valid_attacked,
  )


def dealt(unflagged_when_clean: np.ndarray, wanted: int) -> np.ndarray:
  """Deals pictures to trainings, to each first those that are quiet for it.

  Args:
    quiet: bool[trainings, N]. Picture i is for training i modulo their number.
    wanted: How many; rounded down to as many for each training.

  Returns:
    int[n], rows, in turn one for each training.
  """
  number, n = unflagged_when_clean.shape
  each = min(wanted, n) // number
  rows = []
  for seed in range(number):
    own = np.arange(seed, n, number)
    rows.append(
      own[np.argsort(~unflagged_when_clean[seed, own], kind='stable')][:each]
    )
  return np.stack(rows, axis=1).ravel()


def flagged(active: str, logits: np.ndarray) -> np.ndarray:
  """Tells what a guard flags.

  Args:
    form: One of `ACTIVE_DETECTORS`.
    logits: float32[2, n], of DET_IS and DET_org.

  Returns:
    bool[n].
  """
  if not any(ACTIVE_DETECTORS[active]):
    return np.zeros(logits.shape[1], bool)
  return decisive(active, logits) > 0


def decisive(active: str, logits: np.ndarray) -> np.ndarray:
  """Gives the logit that decides of those in use: float32[2, n] to [n]."""
  used = [
    row
    for row, use in zip(logits, ACTIVE_DETECTORS[active], strict=True)
    if use
  ]
  return np.asarray(more_certain(used[0], used[-1]))


class AttackRun(NamedTuple):
  """One run of an attack.

  Attributes:
    active: Which detectors are, one of `ACTIVE_DETECTORS`.
    share: Of the run's epsilon.
    divisor: By which the number of steps is divided.
  """

  active: str
  share: float = 1.0
  divisor: int = 1


def runs_of(attack: str) -> list[AttackRun]:
  """Lists the runs of an attack: all guards, smaller budgets, fewer steps."""
  full = [AttackRun(active) for active in ACTIVE_DETECTORS]
  smaller = [
    AttackRun(active, share)
    for share in SHARES
    for active in ACTIVE_DETECTORS
    if attack == 'pgd' and active != 'DET_org'
  ]
  fewer = [
    AttackRun('GCD', divisor=divisor)
    for divisor in DIVISORS
    if attack in STEPPED
  ]
  return full + smaller + fewer


def steps_of(config: Config, attack: str, attack_run: AttackRun) -> int:
  """Counts the steps of a run of one of `STEPPED`."""
  settings = config.white_settings(attack)
  return -(-settings['num_steps'] // attack_run.divisor)


def plain_attack(
  config: Config,
  attack: str,
  share: jax.Array | float = 1.0,
  divisor: jax.Array | int = 1,
) -> Attack:
  """Builds an attack with its settings in the white box, detectors unknown.

  Args:
    config: The config of the run.
    attack: One of the run's attacks.
    share: Of the run's epsilon, for those that have one.
    divisor: By which the number of steps of PGD and DDN is divided.
  """
  settings = config.white_settings(attack)
  for key in {'epsilon', 'step_size'} & settings.keys():
    settings[key] = share * settings[key]
  name = attack.removesuffix('_t')
  if name == 'pgd':
    # A row rests at its first success: where two losses pull, steps that follow
    # would often lose it again.
    settings = {'early_stop': True} | settings
  made = build_attack(attack, settings)
  return shortened(made, divisor) if name in ('pgd', 'ddn') else made


class _Shortened(NamedTuple):
  """State of a shortened attack; see `shortened`."""

  inner: Any
  steps: jax.Array
  done: jax.Array


def shortened(attack: Attack, divisor: jax.Array | int) -> Attack:
  """Divides the steps of an attack; the divisor may be traced.

  A row whose steps are used up rests. An attack with a schedule that follows
  its own counter, as DDN's does, goes through all of it in as many fewer steps.

  Args:
    attack: An attack whose rows may rest at any time.
    divisor: At least 1.
  """

  def wrap(inner, steps):
    return _Shortened(inner, steps, inner.done | (steps >= attack.max_steps))

  def init(keys, classifier, images, labels):
    inner = attack.init(keys, classifier, images, labels)
    return wrap(inner, jnp.zeros(labels.shape, jnp.int32))

  def step(classifier, images, labels, state):
    inner = state.inner._replace(done=state.done)
    inner = attack.step(classifier, images, labels, inner)
    steps = state.steps + divisor
    if 'steps' in inner._fields:
      inner = inner._replace(steps=steps)
    return keep_done(state, wrap(inner, steps))

  def finish(classifier, images, labels, state):
    return attack.finish(classifier, images, labels, state.inner)

  return Attack(init, step, finish, attack.max_steps, attack.targeted)


def by_training(run: Callable[..., AttackResult], targeted: bool) -> Composite:
  """Attacks row i of a batch against training i modulo their number.

  Args:
    run: As of `Composite`, given the classifier and what was trained together
      as its victim: `(drive, keys, (classifier, trained), images, labels,
      done)`.
    targeted: As of `Composite`.

  Returns:
    A `Composite` to attack `trained_victim` with, in batches whose size is a
    multiple of the number of trainings. All trainings are one program.
  """

  def dealt_run(drive, keys, victim, images, labels, done):
    classifier, trained = victim.variables
    number = len(jax.tree.leaves(trained)[0])
    if done is None:
      done = jnp.zeros(len(images), bool)

    def attack_one(part):
      trained, keys, images, labels, done = part
      return run(drive, keys, (classifier, trained), images, labels, done)

    def deal(rows):
      return jnp.swapaxes(rows.reshape(-1, number, *rows.shape[1:]), 0, 1)

    def gather(rows):
      return jnp.swapaxes(rows, 0, 1).reshape(-1, *rows.shape[2:])

    rows = jax.tree.map(deal, (keys, images, labels, done))
    return jax.tree.map(gather, jax.lax.map(attack_one, (trained, *rows)))

  return Composite(dealt_run, targeted)


def adaptive_attack(
  config: Config,
  attack: str,
  used: jax.Array,
  share: jax.Array | float = 1.0,
  divisor: jax.Array | int = 1,
) -> Composite:
  """Builds an attack on classifier and detectors at once.

  Untargeted attacks add the detectors' loss, weighed by every beta of the run;
  targeted ones see the detectors as one more class; so does DeepFool, which
  walks to the class that it finds without detectors. All of them follow both
  objectives of a `Guard` of two detectors. What is kept is the first success,
  of minimal-norm attacks the smallest.

  Args:
    config: The config of the run.
    attack: One of the run's attacks.
    used: bool[2], which detectors stand guard.
    share: Of the run's epsilon.
    divisor: By which the number of steps is divided.

  Returns:
    A `Composite` to attack `guarded_victim` with.
  """
  plain = plain_attack(config, attack, share, divisor)
  walk = plain_attack(config, 'deepfool_t') if attack == 'deepfool' else plain
  betas = numbers('--betas', config.betas, '[0, inf]')
  if walk.targeted:
    betas = (0.0,)
  pulls = jnp.asarray([(s, beta) for s in (False, True) for beta in betas])

  def run(drive, keys, victim, images, labels, done):
    classifier, guard = victim
    guard = dataclasses.replace(guard, classifier=classifier, used=used)

    def pulled(pull):
      own = dataclasses.replace(guard, summed=pull[0] > 0)

      def attempt(drive, keys, classifier, images, labels, done):
        if walk.targeted:
          joint = joint_classifier(classifier, own)
          return drive(walk, keys, joint, images, labels, done=done)
        if attack != 'fgsm':
          evasive = evading(plain, own, pull[1])
          return drive(evasive, keys, classifier, images, labels, done=done)
        # Its only step starts where nothing is flagged and the hinge is flat:
        # raised, it has the slope that the attacker will meet.
        evasive = evading(
          plain, lambda images: own(images) + _NEVER_FLAGGED, pull[1]
        )
        found = drive(evasive, keys, classifier, images, labels, done=done)
        fooled = jnp.argmax(classifier(found.images), axis=-1) != labels
        return found._replace(success=fooled & (own(found.images) <= 0))

      def run(drive, keys, classifier, images, labels, done):
        # Of a single detector both objectives are the same.
        rest = done | ~(own.summed | jnp.all(used))
        found = attempt(drive, keys, classifier, images, labels, rest)
        return found._replace(success=found.success & ~rest)

      return Composite(run, walk.targeted)

    search = attacks.over(
      pulled, pulls, smallest=l2 if attack in MINIMAL else None
    )
    if attack != 'deepfool':
      return search.run(drive, keys, classifier, images, labels, done)
    nearest = drive(plain, keys, classifier, images, labels, done=done)
    logits = classifier(nearest.images)
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    runner_up = jnp.argmax(jnp.where(own, -jnp.inf, logits), axis=-1)
    reached = search.run(drive, keys, classifier, images, runner_up, done)
    watched = jnp.any(used)
    return jax.tree.map(
      lambda own, other: jnp.where(watched, own, other), reached, nearest
    )

  return by_training(run, plain.targeted)


def guarded_victim(guards: Sequence[DetectorScore]) -> Classifier:
  """Gives the victim in the form that `informed_attack` takes apart."""
  classifier = guards[0].classifier
  assert classifier is not None  # Only here it travels apart from them.
  return trained_victim(
    classifier,
    [dataclasses.replace(guard, classifier=None) for guard in guards],
  )


def trained_victim(classifier: Classifier, trained: Sequence[PyTree]):
  """Gives the victim in the form that `by_training` takes apart.

  Args:
    classifier: The victim.
    trained: A pytree a training, alike but for the numbers in it.
  """
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trained)
  return from_function(_victim_logits, (classifier, stacked))


def _victim_logits(parts, images):
  classifier, _ = parts
  return classifier(images)


class Judged(NamedTuple):
  """What classifier and detectors say of pictures, NumPy.

  Attributes:
    predicted: int32[n].
    logits: float32[2, n], of DET_IS and DET_org, calibrated.
  """

  predicted: np.ndarray
  logits: np.ndarray


@jax.jit
def _judge(guard, images):
  return jnp.argmax(guard.classifier(images), axis=-1), guard.logits(images).T


def judged(white: WhiteBox, images: np.ndarray) -> Judged:
  """Classifies and scores pictures by the detectors that they meet.

  Args:
    white: What is attacked.
    images: [n, H, W, C], versions of its pictures, uint8 or floats.

  Raises:
    DataError: If a detector gives NaN or infinity, which it could not flag.
  """
  if images.dtype == np.uint8:
    images = np.asarray(to_float(images))
  predicted = np.zeros(len(images), np.int32)
  logits = np.zeros((2, len(images)), np.float32)
  for number, guard in enumerate(white.guards):
    guard = dataclasses.replace(guard, smooth=False)
    rows = white.training == number
    found = map_batches(
      lambda images, guard=guard: _judge(guard, images),
      images[rows],
      batch_size=repair.ROWS,
    )
    predicted[rows], logits[:, rows] = found[0], found[1].T
  if not np.isfinite(logits).all():
    raise DataError(
      'a detector gives NaN or infinity for an attacked picture; look at the '
      'weights of the detectors, and train them again'
    )
  return Judged(predicted, logits)


def succeeded(
  found: Judged, active: str, labels: np.ndarray, targets: np.ndarray | None
) -> np.ndarray:
  """Tells where an attack has success: not flagged, and the label changed.

  Args:
    found: What is said of the attacked pictures.
    form: Who stands guard.
    labels: int32[n], true classes.
    targets: int32[n], classes that have to be reached, or None.

  Returns:
    bool[n].
  """
  fooled = (
    found.predicted != labels if targets is None else found.predicted == targets
  )
  return fooled & ~flagged(active, found.logits)


def budget_curve(
  sizes: np.ndarray, success: np.ndarray, budgets: np.ndarray
) -> np.ndarray:
  """Counts pictures with success by a change of at most so much.

  Args:
    sizes: float64[n], sizes of the changes.
    success: bool[n].
    budgets: float64[P].

  Returns:
    int64[P].
  """
  needed = np.where(success, sizes, np.inf)
  return (needed[None] <= budgets[:, None]).sum(axis=1)


def attack_white(
  inputs: RunInputs,
  white: WhiteBox,
  attack: str,
  attack_runs: Sequence[AttackRun],
) -> list[dict[str, np.ndarray]]:
  """Runs an attack against guards, or finds what it left in the cache.

  Args:
    inputs: The inputs of the run.
    white: What is attacked.
    attack: One of the run's attacks.
    turns: The runs; all are compiled together.

  Returns:
    For each run what `measured` gives.
  """
  config, victim = inputs.config, guarded_victim(white.guards)
  key = stream(config, f'white {attack}')
  targeted = attack.endswith('_t')

  def make(value):
    attack_run = jnp.asarray(value, jnp.int32)
    used = jnp.asarray([ACTIVE_DETECTORS[t.active] for t in attack_runs])[
      attack_run
    ]
    share = jnp.asarray([t.share for t in attack_runs])[attack_run]
    divisor = jnp.asarray([t.divisor for t in attack_runs])[attack_run]
    return adaptive_attack(config, attack, used, share, divisor)

  def compute(folder, work):
    del work
    evaluations = attacks.evaluate_over(
      make,
      range(len(attack_runs)),
      key,
      victim,
      white.pictures.images,
      white.pictures.labels,
      white.pictures.source,
      targets=white.targets if targeted else None,
      **batches_of(white),
    )
    for number, found in enumerate(evaluations):
      storage.write_npz(folder / f'{number}.npz', **measured(white, found))

  made_from = {
    'attack': attack,
    'settings': config.white_settings(attack),
    'betas': config.betas,
    'turns': attack_runs,
    'key': key,
  } | identity(inputs, white)
  version = storage.code_version(__name__)
  folder = inputs.cache.get_or_make('gcd_white', version, made_from, compute)
  return [
    storage.read_npz(folder / f'{number}.npz')
    for number in range(len(attack_runs))
  ]


def batches_of(white: WhiteBox) -> dict[str, Any]:
  """Gives the batch size and the mesh of an evaluation."""
  devices = mesh.all_devices()
  # Every device has as many rows of each training.
  unit = len(white.guards) * (devices.size if devices is not None else 1)
  rows = min(len(white.unflagged_when_clean), common.BATCH)
  return {'batch_size': unit * -(-rows // unit), 'mesh': devices}


def identity(inputs: RunInputs, white: WhiteBox) -> dict[str, Any]:
  """Names all that a white-box attack depends on besides its settings."""
  return {
    'victim': inputs.victim.fingerprint,
    'smooth': white.guards[0].smooth,
    'detectors': storage.fingerprint(jax.tree.leaves(white.guards)),
    'module': detectors.module_of(inputs.config),
    'pictures': white.pictures.fingerprint,
    # Draws of a picture go by its id.
    'source': white.pictures.source,
    'targets': white.targets,
  }


def measured(
  white: WhiteBox, found: attacks.Evaluation
) -> dict[str, np.ndarray]:
  """Judges attacked pictures, before and after rounding.

  Returns:
    'predicted' and 'logits' of the pictures as the attack left them,
    'predicted_uint8' and 'logits_uint8' after rounding, 'images' rounded, and
    the sizes 'l2' and 'linf' of the changes.
  """
  exact, rounded = (
    judged(white, found.images),
    judged(white, found.images_uint8),
  )
  return {
    'predicted': exact.predicted,
    'logits': exact.logits,
    'predicted_uint8': rounded.predicted,
    'logits_uint8': rounded.logits,
    'images': found.images_uint8,
    'l2': found.l2,
    'linf': found.linf,
  }


def repair_setting(config: Config) -> tuple[rectifier.MaskRule, float]:
  """Gives the reading and the masking rate of the repair under attack.

  The middle one of the rates of the run, as a fraction of the pixels; it is
  not chosen for its results.
  """
  alphas = sorted(float(alpha) for alpha in config.alphas)
  return 'fraction', alphas[len(alphas) // 2]


def attack_pipeline(
  inputs: RunInputs, white: WhiteBox, attack: str
) -> dict[str, np.ndarray]:
  """Attacks detectors, random mask and repaired classifier together.

  Suspects are constant in the backward pass, a replaced pixel hands its
  gradient on (BPDA), and logits are the mean over draws of the mask (EOT).

  Args:
    inputs: The inputs of the run.
    white: What is attacked.
    attack: 'pgd' or 'ddn'.

  Returns:
    What `measured` gives, and 'voted', int32[n], the labels that the defence
    gives in the end: of what it flags, those that most of fresh draws of the
    mask vote for.
  """
  config = inputs.config
  reading, alpha = repair_setting(config)
  classifier = inputs.victim.classifier
  key = stream(config, f'white pipeline {attack}')
  scores = [
    repair.pooled_score(inputs, 'ensemble', seed)
    for seed in range(config.num_seeds)
  ]
  tuned = [
    repair.fine_tuned(inputs, alpha, reading, score, seed)
    for seed, score in enumerate(scores)
  ]

  def pipelines(combine: rectifier.Combine) -> list[Classifier]:
    return [
      rectifier.guarded(
        classifier,
        rectifier.rectified(
          own,
          score,
          alpha,
          mask_rule=reading,
          num_draws=config.num_draws,
          combine=combine,
        ),
        score,
      )
      for own, score in zip(tuned, scores, strict=True)
    ]

  plain = plain_attack(config, attack)

  def run(drive, keys, victim, images, labels, done):
    _, pipeline = victim
    return drive(plain, keys, pipeline, images, labels, done=done)

  def compute(folder, work):
    del work
    found = attacks.evaluate(
      by_training(run, plain.targeted),
      key,
      trained_victim(classifier, pipelines('mean')),
      white.pictures.images,
      white.pictures.labels,
      white.pictures.source,
      **batches_of(white),
    )
    keys = picture_keys(
      jax.random.fold_in(key, 1), jnp.asarray(white.pictures.source)
    )
    # The pipeline is an argument, so that its weights are none of the program.
    vote = jax.jit(lambda judge, keys, images: judge(images, keys).argmax(-1))
    voted = np.zeros(len(white.unflagged_when_clean), np.int32)
    for number, judge in enumerate(pipelines('vote')):
      rows = white.training == number
      voted[rows] = map_batches(
        functools.partial(vote, judge),
        keys[rows],
        found.images[rows],
        batch_size=repair.ROWS,
      )
    storage.write_npz(
      folder / 'found.npz', voted=voted, **measured(white, found)
    )

  made_from = {
    'attack': attack,
    'settings': config.white_settings(attack),
    'repair': storage.fingerprint(jax.tree.leaves(pipelines('mean'))),
    'reading': reading,
    'num_draws': config.num_draws,
    'key': key,
  } | identity(inputs, white)
  version = storage.code_version(__name__)
  folder = inputs.cache.get_or_make(
    'gcd_white_pipeline', version, made_from, compute
  )
  return storage.read_npz(folder / 'found.npz')
