"""Runs an attack over a whole set: batches, devices, progress, resume."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import ArrayLike

from jaxadv import hosts
from jaxadv.attacks.drive import drive
from jaxadv.classifier import from_function
from jaxadv.data.images import to_float, to_uint8
from jaxadv.errors import DataError, UserError, explain_out_of_memory
from jaxadv.losses import succeeded
from jaxadv.metrics.distortion import distortion
from jaxadv.storage import (
  fingerprint,
  read_json,
  read_npz,
  write_json,
  write_npz,
)
from jaxadv.types import Attack, ClassifierLike, picture_keys

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """An attack on a whole set; NumPy arrays in the order of the pictures.

  Attributes:
    images: float32[N, H, W, C] in [0, 1], as the attack returned them.
    images_uint8: uint8[N, H, W, C], the same rounded to 8 bit.
    correct: bool[N], whether the clean picture is classified correctly
      (targeted: is not of the class to reach already).
    success: bool[N], judged on `images`; True where not `correct`.
    success_uint8: bool[N], judged on `images_uint8`.
    l2: float64[N], Euclidean norm of the change in image units.
    linf: float64[N], largest change of a channel in image units.
  """

  images: np.ndarray
  images_uint8: np.ndarray
  correct: np.ndarray
  success: np.ndarray
  success_uint8: np.ndarray
  l2: np.ndarray
  linf: np.ndarray

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
    """Share of all pictures on which the attack has no success."""
    return _mean(~self.success)


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
  attack: Attack,
  key: jax.Array,
  classifier: ClassifierLike,
  images: ArrayLike,
  labels: ArrayLike,
  source: ArrayLike | None = None,
  *,
  batch_size: int = 128,
  num_slots: int | None = None,
  targeted: bool = False,
  mesh: Mesh | None = None,
  progress: Progress | bool = False,
  resume_dir: str | os.PathLike[str] | None = None,
) -> Evaluation:
  """Attacks every picture of a set.

  One compilation serves all batches; the last one is padded. A picture's
  result depends on its own key, `fold_in(key, source id)`, and not on the
  batch size, the slots or the number of devices: on CPU to the bit, as long
  as a device has at least two rows at a time.

  Args:
    attack: Any `Attack`, its hyperparameters scalars.
    key: One key.
    classifier: The classifier under attack, not stochastic.
    images: [N, H, W, C], uint8 or float32 in [0, 1].
    labels: int[N], the true classes, or those to reach.
    source: int[N], ids of the pictures, or None for 0 to N - 1.
    batch_size: Number of pictures on the devices at a time.
    num_slots: Number of slots of each device, see `drive`; give it a batch
      several times as large.
    targeted: Whether the attack was built with `targeted=True`.
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
    UserError: If an argument has the wrong shape, type or range, or
      `resume_dir` belongs to something else.
    DataError: If a picture holds a NaN, the classifier gives one, a kept
      batch is broken, or memory or disk are full.
  """
  images, labels, source = _checked(images, labels, source)
  as_float = to_float if images.dtype == np.uint8 else np.asarray
  if getattr(classifier, 'stochastic', False):
    raise UserError(
      'the classifier is stochastic, which no attack here supports; pass one '
      'that gives the same logits every time'
    )
  if jax.tree_util.all_leaves([classifier]):
    # A plain function cannot be an argument of a compiled one.
    classifier = from_function(classifier)
  if batch_size < 1:
    raise UserError(f'batch_size is {batch_size} but must be at least 1')
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

  def attack_batch(classifier, key, images, labels, source):
    keys = picture_keys(key, source)
    return drive(attack, keys, classifier, images, labels, num_slots=num_slots)

  outcome = _Outcome(
    images=np.empty(images.shape, np.float32),
    images_uint8=np.empty(images.shape, np.uint8),
    **{name: np.zeros(len(labels), bool) for name in _Outcome._fields[2:]},
  )
  waiting = np.arange(len(labels))
  if resume_dir is not None:
    folder = Path(resume_dir)
    _claim(
      folder,
      _identity(attack, key, classifier, images, labels, source, targeted),
    )
    finished = _read_chunks(folder, outcome)
    if hosts.on_first(finished.tolist) != finished.tolist():
      raise DataError(
        f'the hosts find different batches in {folder}; it must be a folder '
        'that all of them share'
      )
    waiting = np.setdiff1d(waiting, finished)

  program = attack_batch
  if mesh is not None:
    # Each device loops over its own rows and never waits for another.
    rows, everywhere = PartitionSpec('data'), PartitionSpec()
    program = jax.shard_map(
      attack_batch,
      mesh=mesh,
      in_specs=(everywhere, everywhere, rows, rows, rows),
      out_specs=rows,
      check_vma=False,
    )
    classifier, key = hosts.put(
      (classifier, key), NamedSharding(mesh, everywhere)
    )
  program = jax.jit(program)
  place = (
    NamedSharding(mesh, PartitionSpec('data')) if mesh is not None else None
  )

  with _reporting(progress, len(labels)) as report:
    report(len(labels) - len(waiting), len(labels))
    for start in range(0, len(waiting), batch_size):
      rows_now = waiting[start : start + batch_size]
      padded = np.resize(rows_now, batch_size)
      batch = (as_float(images[padded]), labels[padded], source[padded])
      with explain_out_of_memory(batch_size):
        pictures, truth, ids = hosts.put(batch, place)
        result = program(classifier, key, pictures, truth, ids)
        rounded = to_uint8(result.images)
        judge = functools.partial(
          _judge, classifier, labels=truth, targeted=targeted
        )
        wrong, broken = judge(pictures)
        fooled, _ = judge(to_float(rounded))
        outcomes = hosts.fetch(
          _Outcome(
            images=result.images,
            images_uint8=rounded,
            correct=~wrong,
            success=result.success,
            success_uint8=fooled,
            broken=broken,
          )
        )
      chunk = _Outcome(*(leaf[: len(rows_now)] for leaf in outcomes))
      if chunk.broken.any():
        raise DataError(
          'the classifier gives NaN for the picture in row '
          f'{rows_now[np.argmax(chunk.broken)]}; check its weights and '
          'preprocessing'
        )
      _put(outcome, rows_now, chunk)
      if resume_dir is not None and hosts.is_first():
        name = f'rows-{rows_now[0]}-{len(rows_now)}.npz'
        write_npz(folder / name, rows=rows_now, **chunk._asdict())
      report(len(labels) - len(waiting) + start + len(rows_now), len(labels))

  # In pieces, because it works in float64.
  sizes = [
    distortion(images[start : start + 128], outcome.images[start : start + 128])
    for start in range(0, len(images), 128)
  ]
  kept = outcome._asdict()
  del kept['broken']
  return Evaluation(
    l2=np.concatenate([size.l2 for size in sizes]),
    linf=np.concatenate([size.linf for size in sizes]),
    **kept,
  )


@functools.partial(jax.jit, static_argnames='targeted')
def _judge(classifier, images, labels, *, targeted):
  """Tells which rows are successes, and which get a NaN.

  Apart from the attack, so that one compilation serves all attacks.
  """
  logits = classifier(images)
  broken = jnp.any(jnp.isnan(logits), axis=-1)
  return succeeded(logits, labels, targeted=targeted), broken


def _checked(
  images: ArrayLike, labels: ArrayLike, source: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Refuses what cannot be attacked; gives NumPy arrays."""
  images, labels = np.asarray(images), np.asarray(labels)
  if images.ndim != 4 or not len(images):
    raise UserError(
      f'images have shape {images.shape} but must be [N, H, W, C] with N > 0'
    )
  if images.dtype not in (np.uint8, np.float32):
    raise UserError(
      f'images are {images.dtype} but must be uint8, or float32 in [0, 1]'
    )
  if images.dtype == np.float32:
    per_picture = images.reshape(len(images), -1)
    broken = ~np.isfinite(per_picture).all(axis=1)
    if broken.any():
      raise DataError(
        f'the picture in row {np.argmax(broken)} holds NaN or infinity'
      )
    outside = (per_picture.min(axis=1) < 0) | (per_picture.max(axis=1) > 1)
    if outside.any():
      row = np.argmax(outside)
      raise UserError(
        f'the picture in row {row} ranges from {per_picture[row].min():g} to '
        f'{per_picture[row].max():g} but must lie in [0, 1]; normalisation '
        'belongs inside the classifier'
      )
  source = np.arange(len(images)) if source is None else np.asarray(source)
  for name, values in (('labels', labels), ('source', source)):
    if values.shape != images.shape[:1] or values.dtype.kind not in 'iu':
      raise UserError(
        f'{name} are {values.dtype}{list(values.shape)} but must be integers, '
        f'one for each of the {len(images)} pictures'
      )
  return images, labels.astype(np.int32), source.astype(np.int32)


def _identity(
  attack, key, classifier, images, labels, source, targeted
) -> dict[str, str]:
  """Names all that results depend on, so that no foreign chunk is taken in.

  An attack is a closure; what it computes is told by its lowered program.
  """
  keys = picture_keys(key, source[:1])
  picture = jnp.zeros_like(images[:1], jnp.float32)
  program = jax.jit(attack).lower(keys, classifier, picture, labels[:1])
  parts = {
    'attack': (program.as_text(), targeted),
    'weights': jax.tree.leaves(classifier),
    'key': key,
    'images': images,
    'labels': labels,
    'source': source,
  }
  return {name: fingerprint(part) for name, part in parts.items()}


def _claim(folder: Path, identity: dict[str, str]) -> None:
  """Opens a folder for finished batches; refuses that of something else."""
  record = folder / 'identity.json'

  def open_record() -> dict[str, str]:
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


def _read_chunks(folder: Path, outcome: _Outcome) -> np.ndarray:
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
  return np.concatenate(finished)


@contextlib.contextmanager
def _reporting(progress: Progress | bool, total: int) -> Iterator[Progress]:
  if callable(progress):
    yield progress
  elif progress:
    with rich.progress.Progress() as bar:
      task = bar.add_task('attack', total=total)
      yield lambda done, total: bar.update(task, completed=done, total=total)
  else:
    yield lambda done, total: None
