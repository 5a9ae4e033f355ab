"""The white box: attacks that know the classifier, the detectors, the repair.

Which detectors stand guard is an argument of the compiled attack, so one
program an attack serves the classifier alone, each detector and the ensemble.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from experiments.gcd.protocol import detection, repair
from experiments.gcd.protocol import study as studies
from experiments.gcd.protocol.setting import MINIMAL, Config, numbers
from experiments.gcd.protocol.study import Study
from jaxadv import attacks, storage
from jaxadv.attacks.adaptive import evading, joint_classifier
from jaxadv.attacks.drive import Composite
from jaxadv.classifier import Classifier, from_function
from jaxadv.data import sources
from jaxadv.data.sources import Pictures
from jaxadv.defences import rectifier
from jaxadv.detectors.entropy_ensemble import more_certain, temperature
from jaxadv.norms import l2, linf_ball
from jaxadv.types import Detector, picture_keys
from jaxadv.units import to_float

# Which of DET_IS and DET_org stand guard.
FORMS = {
  'no detector': (False, False),
  'DET_IS': (True, False),
  'DET_org': (False, True),
  'GCD': (True, True),
}
# Section 7 of the spec.
PGD_STEPS = 40
# Of the budget curve of PGD-U, in shares of the run's epsilon.
SHARES = (0.25, 0.5)
# What nobody guards is this far from being flagged.
_FAR = 1e4


@struct.dataclass
class Guard:
  """DET_IS, DET_org or both as one score, positive where a picture is flagged.

  Its value is the rule by which the defence decides: with both, the logit of
  the more certain one. Its gradient is that of the larger logit, since the
  rule itself jumps.

  Attributes:
    classifier: The victim.
    states: Of DET_IS and DET_org.
    temperatures: float32[2], which calibrate their logits.
    used: bool[2], which of them stand guard.
    detectors: DET_IS and DET_org.
    smooth: Whether the gradient takes DET_IS's surrogate, with softplus for
      ReLU; else it is that of second order as it is.
  """

  classifier: Classifier
  states: tuple[Any, Any]
  temperatures: jax.Array
  used: jax.Array
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
    """Scores pictures, float32[B]."""
    logits = self.logits(images)
    largest = jnp.max(jnp.where(self.used[:, None], logits, -_FAR), axis=0)
    rule = jnp.where(jnp.any(self.used), more_certain(*logits), -_FAR)
    slope = largest - jax.lax.stop_gradient(largest)  # Exactly 0.
    return jax.lax.stop_gradient(rule) + slope


class White(NamedTuple):
  """What the white box attacks.

  Attributes:
    guard: The detectors, both in use.
    pictures: The first test pictures that are not flagged when clean, then
      such as are.
    targets: int32[n], classes to reach.
    quiet: bool[n], whether neither detector flags the clean picture; the
      others count nowhere.
    flagged: {form: bool[N]}, which of all clean test pictures are flagged.
  """

  guard: Guard
  pictures: Pictures
  targets: np.ndarray
  quiet: np.ndarray
  flagged: dict[str, np.ndarray]


def white_box(study: Study) -> White:
  """Fits the detectors on all attacks, or finds them; picks the pictures."""
  config = study.config
  learnt = [detection.learn_pooled(study, name, 0) for name in ('is', 'org')]
  guard = Guard(
    classifier=study.victim.classifier,
    states=(learnt[0].state, learnt[1].state),
    temperatures=jnp.asarray(
      [temperature(found.valid, found.valid_attacked) for found in learnt],
      jnp.float32,
    ),
    used=jnp.ones(2, bool),
    detectors=(learnt[0].detector, learnt[1].detector),
  )
  clean = np.stack([found.scores['clean'] for found in learnt])
  clean = clean / np.asarray(guard.temperatures)[:, None]
  quiet = (clean <= 0).all(axis=0)
  rows = np.argsort(~quiet, kind='stable')[: config.white_pictures]
  pictures = sources.subset(study.clean['test'], rows)
  return White(
    guard,
    pictures,
    studies.targets_of(config, pictures),
    quiet[rows],
    {form: flagged(form, clean) for form in FORMS},
  )


def flagged(form: str, logits: np.ndarray) -> np.ndarray:
  """Tells what a guard flags.

  Args:
    form: One of `FORMS`.
    logits: float32[2, n], of DET_IS and DET_org.

  Returns:
    bool[n].
  """
  used = [row for row, use in zip(logits, FORMS[form], strict=True) if use]
  if not used:
    return np.zeros(logits.shape[1], bool)
  return np.asarray(more_certain(used[0], used[-1])) > 0


def white_config(config: Config) -> Config:
  """Gives the config with the settings of attacks in the white box."""
  return dataclasses.replace(
    config,
    pgd_steps=max(config.pgd_steps, PGD_STEPS),
    cw_searches=config.white_searches,
    cw_steps=config.white_steps,
    # Few searches: from a constant that is far too small they end too soon.
    cw_const=config.white_const,
    ddn_steps=config.white_steps,
  )


def plain_attack(config: Config, attack: str, share: jax.Array | float = 1.0):
  """Builds an attack with its settings in the white box, detectors unknown.

  Args:
    config: The config of the run.
    attack: One of the run's attacks.
    share: Of the run's epsilon, for those that have one.
  """
  settings = studies.attack_settings(white_config(config), attack)
  if attack == 'fgsm':
    return attacks.fgsm(share * config.epsilon)
  if attack not in ('pgd', 'pgd_t'):
    return studies.attack_of(white_config(config), attack)
  # A row rests at its first success: where two losses pull, steps that follow
  # would often lose it again.
  return attacks.pgd(
    linf_ball(share * settings['epsilon']),
    share * settings['step_size'],
    settings['num_steps'],
    targeted=attack.endswith('_t'),
    early_stop=True,
  )


def informed_attack(
  config: Config, attack: str, used: jax.Array, share: jax.Array | float
) -> Composite:
  """Builds an attack on classifier and detectors at once.

  Untargeted attacks add the detectors' loss, weighed by every beta of the run
  (of minimal-norm attacks the smallest success is kept); targeted ones see the
  detectors as one more class; so does DeepFool, which walks to the class that
  it finds without detectors.

  Args:
    config: The config of the run.
    attack: One of the run's attacks.
    used: bool[2], which detectors stand guard.
    share: Of the run's epsilon.

  Returns:
    A `Composite` to attack `guarded_victim` with.
  """
  plain = plain_attack(config, attack, share)
  betas = jnp.asarray(numbers('--betas', config.betas, 0, float('inf')))

  def run(drive, keys, victim, images, labels, done):
    classifier, guard = victim.variables
    guard = dataclasses.replace(guard, used=used)
    if attack == 'deepfool':
      return _deepfool(drive, keys, classifier, guard, images, labels, done)
    if plain.targeted:
      joint = joint_classifier(classifier, guard)
      return drive(plain, keys, joint, images, labels, done=done)
    score = guard
    if attack == 'fgsm':
      # Its only step starts where nothing is flagged and the hinge is flat:
      # raised, it has the slope that the attacker will meet. Success is judged
      # by the guard itself afterwards.
      score = lambda images: guard(images) + _FAR
    search = attacks.over(
      lambda beta: evading(plain, score, beta),
      betas,
      smallest=l2 if attack in MINIMAL else None,
    )
    return search.run(drive, keys, classifier, images, labels, done)

  def _deepfool(drive, keys, classifier, guard, images, labels, done):
    nearest = drive(plain, keys, classifier, images, labels, done=done)
    logits = classifier(nearest.images)
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    rivals = jnp.argmax(jnp.where(own, -jnp.inf, logits), axis=-1)
    joint = joint_classifier(classifier, guard)
    targeted = plain_attack(config, 'deepfool_t')
    reached = drive(targeted, keys, joint, images, rivals, done=done)
    watched = jnp.any(guard.used)
    return jax.tree.map(
      lambda own, other: jnp.where(watched, own, other), reached, nearest
    )

  return Composite(run, plain.targeted)


def guarded_victim(guard: Guard) -> Classifier:
  """Gives the victim in the form that `informed_attack` takes apart."""
  return from_function(_victim_logits, (guard.classifier, guard))


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
  return jnp.argmax(guard.classifier(images), axis=-1), guard.logits(images)


def judged(guard: Guard, images: np.ndarray) -> Judged:
  """Classifies and scores pictures, uint8 or floats; uses both detectors."""
  guard = dataclasses.replace(guard, smooth=False)
  if images.dtype == np.uint8:
    images = np.asarray(to_float(images))
  size = min(len(images), studies.BATCH)
  parts = []
  for start in range(0, len(images), size):
    rows = np.arange(start, start + size)
    parts.append(jax.device_get(_judge(guard, images[rows % len(images)])))
  predicted, logits = zip(*parts, strict=True)
  num = len(images)
  return Judged(
    np.concatenate(predicted)[:num], np.concatenate(logits, axis=1)[:, :num]
  )


def succeeded(
  found: Judged, form: str, labels: np.ndarray, targets: np.ndarray | None
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
  return fooled & ~flagged(form, found.logits)


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


class Turn(NamedTuple):
  """One run of an attack.

  Attributes:
    form: Who stands guard, one of `FORMS`.
    share: Of the run's epsilon.
  """

  form: str
  share: float = 1.0


def turns_of(attack: str) -> list[Turn]:
  """Lists the runs of an attack: all guards; PGD-U on smaller budgets too."""
  full = [Turn(form) for form in FORMS]
  smaller = [
    Turn(form, share)
    for share in SHARES
    for form in FORMS
    if attack == 'pgd' and form != 'DET_org'
  ]
  return full + smaller


def attack_white(
  study: Study, white: White, attack: str, turns: Sequence[Turn]
) -> list[dict[str, np.ndarray]]:
  """Runs an attack against guards, or finds what it left in the cache.

  Args:
    study: The study.
    white: What is attacked.
    attack: One of the run's attacks.
    turns: The runs; all are compiled together.

  Returns:
    For each run what `measured` gives.
  """
  config, victim = study.config, guarded_victim(white.guard)
  key = studies.stream(config, f'white {attack}')
  targeted = attack.endswith('_t')

  def make(value):
    turn = jnp.asarray(value, jnp.int32)
    used = jnp.asarray([FORMS[t.form] for t in turns])[turn]
    share = jnp.asarray([t.share for t in turns])[turn]
    return informed_attack(config, attack, used, share)

  def compute(folder, work):
    del work
    evaluations = attacks.evaluate_over(
      make,
      range(len(turns)),
      key,
      victim,
      white.pictures.images,
      white.pictures.labels,
      white.pictures.source,
      targets=white.targets if targeted else None,
      **batches_of(white),
    )
    for number, found in enumerate(evaluations):
      storage.write_npz(
        folder / f'{number}.npz', **measured(white.guard, found)
      )

  made_from = {
    'attack': attack,
    'settings': studies.attack_settings(white_config(config), attack),
    'betas': config.betas,
    'turns': turns,
    'key': key,
  } | identity(study, white)
  version = storage.code_version(__name__)
  folder = study.cache.get_or_make('gcd_white', version, made_from, compute)
  return [
    storage.read_npz(folder / f'{number}.npz') for number in range(len(turns))
  ]


def batches_of(white: White) -> dict[str, Any]:
  """Gives the batch size and the mesh of an evaluation."""
  devices = studies.mesh()
  num = devices.size if devices is not None else 1
  rows = min(len(white.quiet), studies.BATCH)
  return {'batch_size': num * -(-rows // num), 'mesh': devices}


def identity(study: Study, white: White) -> dict[str, Any]:
  """Names all that a white-box attack depends on besides its settings."""
  return {
    'victim': study.victim.identity,
    'smooth': white.guard.smooth,
    'detectors': storage.fingerprint(jax.tree.leaves(white.guard)),
    'module': detection.module_of(study.config),
    'pictures': white.pictures.fingerprint,
    # Draws of a picture go by its id.
    'source': white.pictures.source,
    'targets': white.targets,
  }


def measured(guard: Guard, found: attacks.Evaluation) -> dict[str, np.ndarray]:
  """Judges attacked pictures, before and after rounding.

  Returns:
    'predicted' and 'logits' of the pictures as the attack left them,
    'predicted_uint8' and 'logits_uint8' after rounding, 'images' rounded, and
    the sizes 'l2' and 'linf' of the changes.
  """
  exact, rounded = (
    judged(guard, found.images),
    judged(guard, found.images_uint8),
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


def repair_setting(config: Config) -> tuple[rectifier.Reading, float]:
  """Gives the reading and the masking rate of the repair under attack.

  The middle one of the rates of the run, as a fraction of the pixels; it is
  not chosen for its results.
  """
  alphas = sorted(float(alpha) for alpha in config.alphas)
  return 'fraction', alphas[len(alphas) // 2]


def attack_pipeline(
  study: Study, white: White, attack: str
) -> dict[str, np.ndarray]:
  """Attacks detectors, random mask and repaired classifier together.

  Suspects are constant in the backward pass, a replaced pixel hands its
  gradient on (BPDA), and logits are the mean over draws of the mask (EOT).

  Args:
    study: The study.
    white: What is attacked.
    attack: 'pgd' or 'ddn'.

  Returns:
    What `measured` gives, and 'voted', int32[n], the labels that the defence
    gives in the end: of what it flags, those that most of fresh draws of the
    mask vote for.
  """
  config = study.config
  reading, alpha = repair_setting(config)
  score = repair.pooled_score(study, 'ensemble', 0)
  tuned = repair.fine_tuned(study, alpha, reading, score, 0)
  key = studies.stream(config, f'white pipeline {attack}')

  def pipeline(combine: rectifier.Combine) -> Classifier:
    repaired = rectifier.rectified(
      tuned,
      score,
      alpha,
      mask=reading,
      num_draws=config.num_draws,
      combine=combine,
    )
    return rectifier.guarded(study.victim.classifier, repaired, score)

  def compute(folder, work):
    del work
    found = attacks.evaluate(
      plain_attack(config, attack),
      key,
      pipeline('mean'),
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
    voted = repair.in_batches(
      functools.partial(vote, pipeline('vote')), keys, found.images
    )
    storage.write_npz(
      folder / 'found.npz', voted=voted, **measured(white.guard, found)
    )

  made_from = {
    'attack': attack,
    'settings': studies.attack_settings(white_config(config), attack),
    'repair': storage.fingerprint(jax.tree.leaves(pipeline('mean'))),
    'reading': reading,
    'num_draws': config.num_draws,
    'key': key,
  } | identity(study, white)
  version = storage.code_version(__name__)
  folder = study.cache.get_or_make(
    'gcd_white_pipeline', version, made_from, compute
  )
  return storage.read_npz(folder / 'found.npz')
