"""Runs an attack over a whole set: batches, devices, progress, resume."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import ArrayLike

from jaxadv import hosts
from jaxadv.attacks.drive import Composite, drive
from jaxadv.attacks.inputs import (
  AttackInputs,
  attack_inputs,
  check_attack,
  check_classifier,
  check_targets,
  guessing,
  warn,
)
from jaxadv.attacks.wrap import one_shot
from jaxadv.classifier import as_classifier
from jaxadv.data.images import encode
from jaxadv.errors import (
  DataError,
  DoubtWarning,
  UserError,
  explain_out_of_memory,
)
from jaxadv.inputs import as_key, check_result
from jaxadv.losses import succeeded
from jaxadv.metrics.accuracy import Share, share
from jaxadv.metrics.distortion import distortion, exceeds
from jaxadv.storage import (
  fingerprint,
  read_json,
  read_npz,
  replacing,
  write_json,
  write_npz,
)
from jaxadv.types import (
  Attack,
  AttackResult,
  ClassifierLike,
  Images,
  Labels,
  bound,
  picture_keys,
)
from jaxadv.units import to_float, to_uint8
from jaxadv.utils import check_range, check_whole

Progress = Callable[[int, int], None]
Radius = float | jax.Array

# Turns of a stochastic classifier, far from the numbers of steps of attacks.
_CLEAN, _ATTACKED, _ROUNDED = range(2**31 - 4, 2**31 - 1)


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation:
  """An attack on a whole set; NumPy arrays in the order of the pictures.

  Attributes:
    images: float32[N, H, W, C] in [0, 1], as the attack returned them.
    images_uint8: uint8[N, H, W, C], the same rounded to 8 bit.
    correct: bool[N], whether the clean picture is classified correctly.
    success: bool[N], judged on `images`: whether another class than the true
      one is predicted (so True where not `correct`), or that to reach.
    success_uint8: bool[N], judged on `images_uint8`.
    l0: int[N], pixels changed in at least one channel.
    l1: float64[N], sum of the changes of all channels in image units.
    l2: float64[N], Euclidean norm of the change in image units.
    linf: float64[N], largest change of a channel in image units.
    targeted: Whether success is to reach a class.
  """

  images: np.ndarray
  images_uint8: np.ndarray
  correct: np.ndarray
  success: np.ndarray
  success_uint8: np.ndarray
  l0: np.ndarray
  l1: np.ndarray
  l2: np.ndarray
  linf: np.ndarray
  targeted: bool = False

  def __repr__(self) -> str:
    """Gives the figures, and no arrays."""
    num, *shape = self.images.shape
    reached = self.correct & self.success
    size = lambda norm: float(np.median(getattr(self, norm)[reached]))
    rates = {'clean accuracy': self.clean_accuracy}
    rates['robust accuracy'] = self.robust_accuracy
    if self.correct.any():
      rates['attack success rate'] = self.attack_success_rate
    sizes = ''
    if reached.any():
      rates['of which survive 8 bit'] = self.survives_uint8
      sizes = f', median change L2 {size("l2"):.4g}, Linf {size("linf"):.4g}'
    shares = ', '.join(f'{name} {rate:.1%}' for name, rate in rates.items())
    pictures = f'{num} picture{"s" * (num > 1)} of {"x".join(map(str, shape))}'
    return f'Evaluation of {pictures}: {shares}{sizes}'

  def save_pngs(self, folder: str | os.PathLike[str]) -> list[Path]:
    """Writes the attacked pictures, rounded to 8 bit, as PNG files.

    Args:
      folder: Made if need be; files already there are replaced.

    Returns:
      The files, `00000.png` and so on, in the order of the pictures.

    Raises:
      UserError: If the pictures have neither 1 nor 3 channels.
      DataError: If the disk is full; names the file.
    """
    if self.images.shape[-1] not in (1, 3):
      raise UserError(
        f'the pictures have {self.images.shape[-1]} channels but a PNG must '
        'have 1 or 3; take them from images_uint8'
      )
    paths = [Path(folder) / f'{row:05d}.png' for row in range(len(self.images))]
    for path, pixels in zip(paths, self.images_uint8, strict=True):
      with replacing(path) as file:
        file.write(encode(pixels))
    return paths

  @property
  def clean_accuracy(self) -> float:
    """Share of all pictures that are classified correctly when clean."""
    return _mean(self.correct)

  @property
  def attack_success_rate(self) -> float:
    """Share of successes among `correct` pictures; NaN if there are none."""
    return _mean(self.success[self.correct])

  @property
  def survives_uint8(self) -> float:
    """Share of those successes that are one after rounding; may be NaN."""
    return _mean(self.success_uint8[self.correct & self.success])

  @property
  def robust_accuracy(self) -> float:
    """Share of all pictures that are correct and withstand the attack."""
    return _mean(self.correct & ~self.success)


def _mean(flags: np.ndarray) -> float:
  return float(flags.mean()) if flags.size else float('nan')


class _Outcome(NamedTuple):
  """What is computed on the devices; of JAX there, of NumPy here."""

  images: Any
  images_uint8: Any
  correct: Any
  success: Any
  success_uint8: Any
  broken: Any


def evaluate(
  attack: Attack | Composite,
  key: jax.Array,
  classifier: ClassifierLike,
  images: ArrayLike,
  labels: ArrayLike,
  source: ArrayLike | None = None,
  *,
  targets: ArrayLike | None = None,
  batch_size: int = 128,
  num_slots: int | None = None,
  mesh: Mesh | None = None,
  progress: Progress | bool = False,
  resume_dir: str | os.PathLike[str] | None = None,
) -> Evaluation:
  """Attacks every picture of a set.

  One compilation serves all batches; the last one is padded. A picture's
  result depends on its own key, `fold_in(key, source id)`, and not on the
  batch size, the slots or the number of devices: on CPU to the bit, as long
  as a device has at least two rows at a time.

  A stochastic classifier is judged with draws that the attack has not seen,
  so that an attack gains nothing from a lucky draw.

  Args:
    attack: Any attack, its hyperparameters scalars.
    key: One key.
    classifier: The classifier under attack. If its outputs are random, it has
      to say so: `from_function(..., stochastic=True)`.
    images: [N, H, W, C], uint8 or floating in [0, 1].
    labels: int[N], the true classes, for a targeted attack too.
    source: int[N], ids of the pictures, or None for 0 to N - 1.
    targets: int[N], the classes to reach, for a targeted attack only.
    batch_size: Number of pictures on the devices at a time.
    num_slots: Number of slots of each device, see `drive`; give it a batch
      several times as large.
    mesh: Devices with one axis 'data' over which batches are split, or None
      for the default device. The batch size must be a multiple of its size.
    progress: `(done, total) -> None`, called after every batch, or True for
      a bar with the time left.
    resume_dir: Folder in which every finished batch is kept, or None. Called
      again with the same arguments (the batch size, slots and devices may
      differ), what is finished is read back.

  Returns:
    An `Evaluation`.

  Raises:
    UserError: If an argument has the wrong shape, type or range, the attack
      and `targets` do not fit each other, the classifier is random and does
      not declare it, or `resume_dir` belongs to something else.
    DataError: If a picture holds a NaN, the classifier or the attack gives
      one, a kept batch is broken, or memory or disk are full.

  Warns:
    DoubtWarning: If the classifier has a gradient that is not finite (such
      entries count as 0) or 0, gives what looks like probabilities, depends on
      the batch that a picture is in, or is no better than guessing.
  """
  check_attack(attack)
  run = _Run(
    make=lambda _: attack,
    key=as_key(key),
    classifier=as_classifier(classifier),
    inputs=attack_inputs(images, labels, source, targets),
    batch_size=batch_size,
    num_slots=num_slots,
    mesh=mesh,
  )
  (found,) = _evaluate(run, [0.0], [resume_dir], progress)
  return found


def evaluate_over(
  make: Callable[[Radius], Attack | Composite],
  epsilons: Sequence[float],
  key: jax.Array,
  classifier: ClassifierLike,
  images: ArrayLike,
  labels: ArrayLike,
  source: ArrayLike | None = None,
  *,
  targets: ArrayLike | None = None,
  batch_size: int = 128,
  num_slots: int | None = None,
  mesh: Mesh | None = None,
  progress: Progress | bool = False,
  resume_dir: str | os.PathLike[str] | None = None,
) -> list[Evaluation]:
  """Attacks every picture of a set at many epsilons, compiled once for all.

  Args:
    make: `epsilon -> attack`. The epsilon is traced; it may be any other
      hyperparameter that attacks take as a traced scalar.
    epsilons: Its values, at least one; at 0 an attack that refuses it leaves
      the pictures clean.
    key: As in `evaluate`, and so on; all epsilons get the same draws.
    classifier: See `evaluate`.
    images: See `evaluate`.
    labels: See `evaluate`.
    source: See `evaluate`.
    targets: See `evaluate`.
    batch_size: See `evaluate`.
    num_slots: See `evaluate`.
    mesh: See `evaluate`.
    progress: See `evaluate`; the total counts a picture once an epsilon.
    resume_dir: See `evaluate`; each epsilon has a folder of its own in it, so
      more of them can be added later.

  Returns:
    An `Evaluation` for each epsilon.

  Raises:
    UserError: As `evaluate`, or if there is no epsilon.
    DataError: As `evaluate`.

  Warns:
    DoubtWarning: As `evaluate`, or if all epsilons give the same pictures.

  Example:
    >>> epsilons = [2 / 255, 4 / 255, 8 / 255]
    >>> found = evaluate_over(
    ...   lambda epsilon: pgd(linf_ball(epsilon), epsilon / 4, 10),
    ...   epsilons, key, classifier, images, labels,
    ... )
    >>> [f'{each.robust_accuracy:.0%}' for each in found]
    ['75%', '42%', '17%']
  """
  epsilons = _as_numbers(epsilons)
  if isinstance(make, Attack | Composite) or not callable(make):
    raise UserError(
      f'make is {make!r:.40} but must be a function that makes an attack, as '
      'in lambda epsilon: pgd(linf_ball(epsilon))'
    )
  run = _Run(
    make=make,
    key=as_key(key),
    classifier=as_classifier(classifier),
    inputs=attack_inputs(images, labels, source, targets),
    batch_size=batch_size,
    num_slots=num_slots,
    mesh=mesh,
  )
  folders = [
    None if resume_dir is None else Path(resume_dir) / f'{epsilon:.9g}'
    for epsilon in epsilons
  ]
  found = _evaluate(run, epsilons, folders, progress)
  first, *others = found
  if others and first.l0.any():
    if all(np.array_equal(first.images, each.images) for each in others):
      warnings.warn(
        'the attack gives the same pictures at all epsilons; let make use its '
        'epsilon, as in lambda epsilon: pgd(linf_ball(epsilon))',
        DoubtWarning,
        stacklevel=2,
      )
  return found


def _as_numbers(epsilons: Any) -> list[float]:
  """Gives radii as a list, or says why that cannot be."""
  values = np.atleast_1d(np.asarray(epsilons)).tolist()
  if not values or not all(isinstance(value, int | float) for value in values):
    raise UserError(
      f'epsilons are {values} but must be numbers such as 8 / 255, at least one'
    )
  return values


def robust_accuracy_curve(
  found: Evaluation | Sequence[Evaluation],
  epsilons: Sequence[float],
  norm: str,
) -> list[Share]:
  """Counts the pictures that withstand all that was tried, for each epsilon.

  A picture counts as broken at an epsilon if it was wrong when clean or if
  one of its successful changes is at most that large. So one evaluation of a
  minimal-norm attack gives the whole curve, several budget attacks give one
  that never rises, and both can be mixed.

  Args:
    found: Untargeted evaluations of the same pictures, one or several.
    epsilons: Radii in image units.
    norm: 'linf', 'l2', 'l1' or 'l0', in which changes are measured.

  Returns:
    A `Share` of all pictures for each epsilon, with its `value` and
    `interval`.

  Raises:
    UserError: If the norm is unknown, an epsilon is no number, or the
      evaluations are targeted or differ in length.

  Warns:
    DoubtWarning: If an epsilon lies beyond what budget attacks tried.
  """
  several = [found] if isinstance(found, Evaluation) else found
  epsilons = _as_numbers(epsilons)
  check_range('epsilons', epsilons, 0, 1 if norm == 'linf' else float('inf'))
  if any(each.targeted for each in several):
    raise UserError(
      'an evaluation is targeted, whose successes are no errors of the '
      'classifier; robust accuracy is that under untargeted attacks'
    )
  if norm not in ('linf', 'l2', 'l1', 'l0'):
    raise UserError(f'norm is {norm!r} but must be one of linf, l2, l1, l0')
  if len({len(each.correct) for each in several}) != 1:
    raise UserError(
      f'evaluations of {[len(each.correct) for each in several]} pictures; '
      'give at least one, and all of the same pictures'
    )
  correct = np.all([each.correct for each in several], axis=0)
  distance = np.min(
    [np.where(each.success, getattr(each, norm), np.inf) for each in several],
    axis=0,
  )
  num_values = several[0].images[0].size
  reach = np.max([getattr(each, norm)[each.correct] for each in several])
  held = np.isinf(distance) & correct
  given_up = np.max(
    [np.where(held, getattr(each, norm), 0) for each in several], initial=0
  )
  # What a budget attack without success leaves fills its budget.
  if given_up and max(epsilons) > 1.01 * reach:
    warnings.warn(
      f'nothing was tried beyond {reach:.4g} in {norm}, so that the curve is '
      f'too high at {max(epsilons):.4g}; evaluate at the largest epsilon, too',
      DoubtWarning,
      stacklevel=2,
    )
  return [
    share(correct & exceeds(distance, epsilon, norm, num_values))
    for epsilon in epsilons
  ]


@dataclasses.dataclass(frozen=True)
class _Run:
  """The arguments of an evaluation; see `evaluate_over`."""

  make: Callable[[Any], Attack | Composite]
  key: jax.Array
  classifier: Any
  inputs: AttackInputs
  batch_size: int
  num_slots: int | None
  mesh: Mesh | None


def _evaluate(
  run: _Run,
  values: Sequence[float],
  folders: Sequence[str | os.PathLike[str] | None],
  progress: Progress | bool,
) -> list[Evaluation]:
  """Runs `run.make(value)` for every value, each with a folder to resume."""
  _check_devices(run)
  # Made once with plain numbers: factories check the ranges of those.
  runs = [_at(run, float(value)) for value in values]
  for each, value in zip(runs, values, strict=True):
    attack = each.make(float(value))
    check_attack(attack)
    check_targets(run.inputs, attack.targeted)
  with explain_out_of_memory(run.batch_size):
    num_classes = check_classifier(run.classifier, run.key, run.inputs)
  compiled = {each.make: _compiled(each) for each in runs}
  num_rows = len(run.inputs.labels)
  total = num_rows * len(values)
  found: list[Evaluation] = []
  with _reporting(progress, total) as report:
    for each, value, folder in zip(runs, values, folders, strict=True):
      outcome = _Outcome(
        images=np.empty(run.inputs.images.shape, np.float32),
        images_uint8=np.empty(run.inputs.images.shape, np.uint8),
        **{name: np.zeros(num_rows, bool) for name in _Outcome._fields[2:]},
      )
      waiting = np.arange(num_rows)
      if folder is not None:
        folder = Path(folder)
        _claim(folder, _identity(each, value))
        waiting = np.setdiff1d(waiting, _finished(folder, outcome))
      before = num_rows * len(found) + num_rows - len(waiting)
      report(before, total)
      for start in range(0, len(waiting), run.batch_size):
        rows = waiting[start : start + run.batch_size]
        chunk = compiled[each.make](value, rows)
        if chunk.broken.any():
          raise DataError(
            'the classifier gives NaN or infinity for the picture in row '
            f'{rows[np.argmax(chunk.broken)]}, clean or attacked; check its '
            'weights and preprocessing'
          )
        check_result(chunk.images, rows, 'the attack')
        _put(outcome, rows, chunk)
        if folder is not None and hosts.is_first():
          name = f'rows-{rows[0]}-{len(rows)}.npz'
          write_npz(folder / name, rows=rows, **chunk._asdict())
        report(before + start + len(rows), total)
      found.append(_measured(run.inputs, outcome))
  warn(guessing(found[0].correct, num_classes), stacklevel=4)
  return found


def _at(run: _Run, value: float) -> _Run:
  """Gives the run for a value: at 0, an attack that refuses it does nothing."""
  if value:
    return run
  try:
    run.make(value)
  except UserError:
    targeted = run.inputs.targets is not None
    nothing = one_shot(lambda keys, images: images, targeted=targeted)
    return dataclasses.replace(run, make=lambda _: nothing)
  return run


def _compiled(run: _Run) -> Callable[[float, np.ndarray], _Outcome]:
  """Gives `(value, rows) -> outcome` of one batch, at most `batch_size` rows.

  The value is an argument of the compiled program, not a part of it.
  """

  def attack(
    value: Any,
    classifier: ClassifierLike,
    key: jax.Array,
    images: Images,
    aims: Labels,
    source: jax.Array,
  ) -> AttackResult:
    return drive(
      run.make(value),
      picture_keys(key, source),
      classifier,
      images,
      aims,
      num_slots=run.num_slots,
    )

  classifier, key, place = run.classifier, run.key, None
  program: Callable[..., Any] = attack
  if run.mesh is not None:
    # Each device loops over its own rows and never waits for another.
    rows, everywhere = PartitionSpec('data'), PartitionSpec()
    program = jax.shard_map(
      attack,
      mesh=run.mesh,
      in_specs=(everywhere, everywhere, everywhere, rows, rows, rows),
      out_specs=rows,
      check_vma=False,
    )
    place = NamedSharding(run.mesh, rows)
    classifier, key = hosts.put(
      (classifier, key), NamedSharding(run.mesh, everywhere)
    )
  program = jax.jit(program)
  inputs, targeted = run.inputs, run.inputs.targets is not None
  scaled = to_float if inputs.images.dtype == np.uint8 else np.asarray
  declared = getattr(classifier, 'stochastic', False)

  def attack_batch(value: float, rows: np.ndarray) -> _Outcome:
    padded = np.resize(rows, run.batch_size)
    numbers = (inputs.labels, inputs.aims, inputs.source)
    batch = (
      scaled(inputs.images[padded]),
      *(part[padded] for part in numbers),
    )
    with explain_out_of_memory(run.batch_size):
      clean, labels, aims, source = hosts.put(batch, place)
      judge = functools.partial(_judge, classifier, key, source)
      seen = judge(clean, labels, _CLEAN, targeted=False)
      try:
        result = program(
          np.float32(value), classifier, key, clean, aims, source
        )
      except ValueError as error:
        if 'do not support JVP' not in str(error):
          raise
        raise UserError(
          'the attack follows a gradient but the classifier has none, as it '
          'calls back to Python; attack it by queries, with square or hsv'
        ) from error
      rounded = to_uint8(result.images)
      judge_aims = functools.partial(judge, labels=aims, targeted=targeted)
      success = result.success
      if declared:
        success = judge_aims(result.images, turn=_ATTACKED).success
      last = judge_aims(to_float(rounded), turn=_ROUNDED)
      outcome = hosts.fetch(
        _Outcome(
          images=result.images,
          images_uint8=rounded,
          correct=~seen.success,
          success=success,
          success_uint8=last.success,
          broken=seen.broken | last.broken,
        )
      )
    return _Outcome(*(leaf[: len(rows)] for leaf in outcome))

  return attack_batch


class _Judgement(NamedTuple):
  """What a classifier says of a batch."""

  success: jax.Array
  broken: jax.Array


@functools.partial(jax.jit, static_argnames='targeted')
def _judge(
  classifier: ClassifierLike,
  key: jax.Array,
  source: jax.Array,
  images: Images,
  labels: Labels,
  turn: int,
  *,
  targeted: bool,
) -> _Judgement:
  """Tells which rows are successes, and which get NaN or infinity.

  Apart from the attack, so that one compilation serves all attacks.
  """
  logits = bound(classifier, picture_keys(key, source), turn)(images)
  broken = jnp.any(jnp.isnan(logits) | jnp.isposinf(logits), axis=-1)
  return _Judgement(succeeded(logits, labels, targeted=targeted), broken)


def _measured(inputs: AttackInputs, outcome: _Outcome) -> Evaluation:
  """Adds the sizes of the changes, in pieces, because it takes float64."""
  clean = inputs.images
  sizes = [
    distortion(clean[start : start + 128], outcome.images[start : start + 128])
    for start in range(0, len(clean), 128)
  ]
  kept = outcome._asdict()
  del kept['broken']
  return Evaluation(
    targeted=inputs.targets is not None,
    **kept,
    **{
      name: np.concatenate([getattr(size, name) for size in sizes])
      for name in ('l0', 'l1', 'l2', 'linf')
    },
  )


def _check_devices(run: _Run) -> None:
  batch_size, mesh = run.batch_size, run.mesh
  check_whole('batch_size', batch_size, 1)
  if run.num_slots is not None:
    check_whole('num_slots', run.num_slots, 1)
  if mesh is not None and not isinstance(mesh, Mesh):
    raise UserError(
      f'mesh is {mesh!r:.40} but must be a Mesh, such as training.data_mesh()'
    )
  if mesh is not None and (
    'data' not in mesh.shape or mesh.size != mesh.shape['data']
  ):
    raise UserError(
      f"the mesh has axes {dict(mesh.shape)} but needs one, 'data'"
    )
  if mesh is not None and batch_size % mesh.size:
    raise UserError(
      f'batch_size is {batch_size} but must be a multiple of the number of '
      f'devices, {mesh.size}'
    )


def _identity(run: _Run, value: float) -> dict[str, str]:
  """Names all that results depend on, so that no foreign chunk is taken in.

  An attack is a closure; what it computes is told by its lowered program.
  """
  inputs = run.inputs

  def attack(value: Any, *given: Any) -> AttackResult:
    return run.make(value)(*given)

  program = jax.jit(attack).lower(
    np.float32(value),
    picture_keys(run.key, jnp.asarray(inputs.source[:1])),
    run.classifier,
    jnp.zeros_like(inputs.images[:1], jnp.float32),
    inputs.aims[:1],
  )
  parts = {
    'attack or classifier': (program.as_text(), float(value)),
    'weights': jax.tree.leaves(run.classifier),
    'key': run.key,
    **inputs._asdict(),
  }
  return {name: fingerprint(part) for name, part in parts.items()}


def _claim(folder: Path, identity: dict[str, str]) -> None:
  """Opens a folder for finished batches; refuses that of something else."""
  record = folder / 'identity.json'

  def open_record() -> dict[str, str]:
    if folder.exists() and not folder.is_dir():
      raise UserError(f'resume_dir is {folder}, a file; give a folder')
    if not record.exists():
      write_json(record, identity)
    return read_json(record)

  found = hosts.on_first(open_record)
  differing = [name for name in identity if found.get(name) != identity[name]]
  if differing:
    raise UserError(
      f'{folder} holds finished batches of another run (other '
      f'{", ".join(differing)}); pass another resume_dir'
    )


def _put(outcome: _Outcome, rows: np.ndarray, chunk: _Outcome) -> None:
  for whole, part in zip(outcome, chunk, strict=True):
    whole[rows] = part


def _finished(folder: Path, outcome: _Outcome) -> np.ndarray:
  """Reads finished batches into `outcome`; gives their rows."""
  finished = [np.zeros(0, int)]
  for path in sorted(folder.glob('rows-*.npz')):
    arrays = read_npz(path)
    try:
      rows = arrays.pop('rows')
      _put(outcome, rows, _Outcome(**arrays))
    except (KeyError, TypeError, ValueError, IndexError) as error:
      raise DataError(f'{path} does not hold a finished batch') from error
    finished.append(rows)
  every = np.concatenate(finished)
  if hosts.on_first(every.tolist) != every.tolist():
    raise DataError(
      f'the hosts find different batches in {folder}; it must be a folder '
      'that all of them share'
    )
  return every


@contextlib.contextmanager
def _reporting(progress: Progress | bool, total: int) -> Iterator[Progress]:
  if callable(progress):
    yield progress
  elif progress:
    from rich.progress import Progress as ProgressBar

    with ProgressBar() as bar:
      task = bar.add_task('attack', total=total)
      yield lambda done, total: bar.update(task, completed=done, total=total)
  else:
    yield lambda done, total: None
