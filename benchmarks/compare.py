"""Runs one attack of all libraries in turn and judges what comes back."""

from __future__ import annotations

import inspect
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks import nets, peers
from jaxadv import attacks, losses
from jaxadv.errors import UserError
from jaxadv.metrics.distortion import distortion
from jaxadv.training import replicate

OURS = 'jaxadv'
_JUDGED_AT_ONCE = 250
_SHORTEST_TURN = 0.2  # seconds; faster candidates are called several times


class Setting(NamedTuple):
  """An attack as all libraries run it.

  Attributes:
    name: Its name for `attacks.make`.
    hyper: Hyperparameters, names of ours; the peers get them too, but for
      those that only ours has.
    num_gradients: Gradients of a picture if it takes all steps, as a function
      of the hyperparameters; None where that depends on the picture.
    budget: Whether it keeps within epsilon; else it searches a small change.
    slots: Whether rows of ours end at different times.
    waiting: Whether to time ours without slots, too.
    all_pictures: Whether pictures misclassified when clean are attacked.
  """

  name: str
  hyper: dict[str, Any]
  num_gradients: Callable[[dict[str, Any]], int] | None = None
  budget: bool = False
  slots: bool = False
  waiting: bool = True
  all_pictures: bool = False


class Passes:
  """Counts rows that went through a net, forward and backward."""

  def __init__(self):
    self.forward = 0
    self.backward = 0

  def add(self, kind: str, rows: int) -> None:
    setattr(self, kind, getattr(self, kind) + rows)

  def watch(self, net):
    """Counts the passes of a PyTorch net; gives what ends it."""

    def hook(module, inputs, output):
      del module, inputs
      self.add('forward', len(output))
      if output.requires_grad:
        output.register_hook(lambda change: self.add('backward', len(change)))

    return net.register_forward_hook(hook)

  def watched(self, classifier):
    """Gives the classifier with a counter at its logits, for use in a jit."""

    def count(kind, values):
      def add(_):
        self.add(kind, len(values))
        return np.float32(0)

      # Pure on paper, so that a pass that XLA leaves out is not counted.
      shape = jax.ShapeDtypeStruct((), np.float32)
      return values + jax.pure_callback(add, shape, values.ravel()[0])

    @jax.custom_vjp
    def tap(logits):
      return count('forward', logits)

    tap.defvjp(
      lambda logits: (tap(logits), None),
      lambda _, change: (count('backward', change),),
    )
    return lambda images: tap(classifier(images))


class Candidate(NamedTuple):
  """What is timed.

  Attributes:
    run: Attacks the pictures; returns once the result is there.
    to_numpy: From the result to float32[N, H, W, C].
    counted: Gives `Passes` of one attack, asked after the first run; None
      where they are not counted.
    seconds_to_compile: Of ours; None for the others.
  """

  run: Callable[[], Any]
  to_numpy: Callable[[Any], np.ndarray]
  counted: Callable[[], Passes] | None
  seconds_to_compile: float | None = None


class Judged(NamedTuple):
  """What the returned images are worth."""

  success: float
  l2: float
  linf: float
  over_epsilon: float
  outside_box: float


def judge(
  clean: np.ndarray,
  attacked: np.ndarray,
  fooled: np.ndarray,
  epsilon: float | None,
) -> Judged:
  """Judges the images of any library.

  Args:
    clean: float32[N, H, W, C].
    attacked: float32[N, H, W, C].
    fooled: bool[N], whether an attacked image is misclassified; one with a
      NaN counts as a failure and as infinitely far outside the box.
    epsilon: Radius of a budget attack in Linf; None for a minimal-norm one,
      where medians take a picture without success as infinitely far.
  """
  whole = np.isfinite(attacked).reshape(len(clean), -1).all(axis=1)
  attacked = np.where(whole[:, None, None, None], attacked, clean)
  fooled = fooled & whole
  # Distances are those of what a picture can hold.
  size = distortion(clean, np.clip(attacked, 0, 1))
  far = np.where(fooled | (epsilon is not None), 0, np.inf)
  outside = np.abs(attacked.astype(np.float64) - 0.5) - 0.5
  return Judged(
    success=float(fooled.mean()),
    l2=float(np.median(size.l2 + far)),
    linf=float(np.median(size.linf + far)),
    over_epsilon=max(0.0, float(size.linf.max()) - (epsilon or math.inf)),
    outside_box=max(0.0, float(outside.max())) if whole.all() else math.inf,
  )


def interleaved(
  runs: dict[str, Callable[[], Any]],
  firsts: dict[str, float],
  repeats: int,
  limit_s: float,
) -> dict[str, tuple[float, int]]:
  """Times candidates in turn.

  Args:
    runs: What to time.
    firsts: Seconds of a call made before.
    repeats: Number of turns.
    limit_s: Seconds for all turns of a candidate; one whose first call took
      longer is not called again, and that call counts.

  Returns:
    Median seconds and number of turns of each.
  """
  times: dict[str, list[float]] = {name: [] for name in runs}
  for turn in range(repeats):
    for name, run in runs.items():
      first = firsts[name]
      if first > limit_s or (turn and (turn + 1) * first > limit_s):
        continue
      calls = max(1, math.ceil(_SHORTEST_TURN / first))
      start = time.perf_counter()
      for _ in range(calls):
        run()
      times[name].append((time.perf_counter() - start) / calls)
  return {
    name: (statistics.median(values or [firsts[name]]), max(1, len(values)))
    for name, values in times.items()
  }


class Subject(NamedTuple):
  """What is attacked: a net in JAX, perhaps its twin, and pictures."""

  classifier: Any
  twin: Any
  device: str
  images: np.ndarray
  labels: np.ndarray

  def predict(self, images: np.ndarray, in_torch: bool) -> np.ndarray:
    """Classifies in the framework that a library attacked.

    A minimal-norm attack ends within a rounding error of the boundary.
    """
    found = []
    for start in range(0, len(images), _JUDGED_AT_ONCE):
      part = images[start : start + _JUDGED_AT_ONCE]
      if in_torch:
        logits = self.twin(nets.to_torch(part, self.device)).cpu().numpy()
      else:
        logits = _logits(self.classifier, part)
      found.append(np.argmax(logits, axis=-1))
    return np.concatenate(found)


@jax.jit
def _logits(classifier, images):
  return classifier(images)


def _on_devices(function: Callable[..., Any], num_arrays: int, mesh: Mesh):
  """Compiles `(classifier, *arrays) -> array`, rows split over the mesh.

  Each device loops over its own rows, as under `attacks.evaluate`.
  """
  rows = jax.P('data')
  return jax.jit(
    jax.shard_map(
      function,
      mesh=mesh,
      in_specs=(jax.P(), *[rows] * num_arrays),
      out_specs=rows,
      check_vma=False,
    )
  )


def _placed(
  classifier: Any, arrays: Sequence[jax.Array], size: int, mesh: Mesh
) -> tuple[Any, list[tuple[jax.Array, ...]]]:
  """Puts the classifier, and batches of the arrays, where programs want them.

  Raises:
    UserError: If the rows of a batch cannot be shared out evenly.
  """
  if size % mesh.size or len(arrays[0]) % size:
    raise UserError(
      f'{len(arrays[0])} pictures in batches of {size} cannot be shared by '
      f'{mesh.size} devices; give other --n, --batch_size or --devices'
    )
  rows = jax.NamedSharding(mesh, jax.P('data'))
  return replicate(classifier, mesh), [
    tuple(jax.device_put(array[start : start + size], rows) for array in arrays)
    for start in range(0, len(arrays[0]), size)
  ]


def _our_candidate(
  attack: Any,
  subject: Subject,
  num_slots: int | None,
  batch_size: int,
  count: bool,
  mesh: Mesh,
) -> Candidate:
  """Compiles an attack of ours that returns images, as those of the peers do.

  Judging would cost a forward pass more, which the peers do not do either.
  """
  in_batches = num_slots is None
  size = batch_size if in_batches else len(subject.labels)
  keys = attacks.picture_keys(
    jax.random.key(0), jnp.arange(len(subject.labels))
  )
  images, labels = jnp.asarray(subject.images), jnp.asarray(subject.labels)
  net, parts = _placed(subject.classifier, (keys, images, labels), size, mesh)

  def program(watch):
    def attacked(classifier, keys, images, labels):
      return attacks.drive(
        attack, keys, watch(classifier), images, labels, num_slots=num_slots
      ).images

    return _on_devices(attacked, 3, mesh)

  start = time.perf_counter()
  compiled = (
    program(lambda classifier: classifier).lower(net, *parts[0]).compile()
  )
  seconds = time.perf_counter() - start

  def run():
    return jax.block_until_ready([compiled(net, *part) for part in parts])

  def counted():
    passes = Passes()
    watched = program(passes.watched)
    jax.block_until_ready([watched(net, *part) for part in parts])
    return passes

  return Candidate(run, np.concatenate, counted if count else None, seconds)


def _peer_candidate(
  library: str,
  attack: str,
  setting: Setting,
  subject: Subject,
  batch_size: int,
) -> Candidate:
  """Builds the attack of another library.

  Raises:
    UserError: If the library has no such attack.
  """
  import torch

  table = peers.LIBRARIES[library](subject.twin, batch_size, subject.device)
  if attack not in table:
    raise UserError('has no such attack')
  build = table[attack]
  known = inspect.signature(build).parameters
  hyper = {key: value for key, value in setting.hyper.items() if key in known}
  one_batch = build(**hyper)
  images = nets.to_torch(subject.images, subject.device)
  labels = torch.tensor(subject.labels.astype(np.int64)).to(subject.device)
  if attack == 'auto_attack':  # makes batches itself
    parts = [(images, labels)]
  else:
    parts = list(
      zip(images.split(batch_size), labels.split(batch_size), strict=True)
    )

  passes = Passes()
  calls = 0

  def run():
    nonlocal calls
    calls += 1
    hook = passes.watch(subject.twin) if calls == 1 else None
    try:
      results = [one_batch(*part) for part in parts]
      if subject.device != 'cpu':
        torch.cuda.synchronize()
    finally:
      if hook:
        hook.remove()
    return results

  def to_numpy(results):
    arrays = [
      part if isinstance(part, np.ndarray) else part.detach().cpu().numpy()
      for part in results
    ]
    return np.concatenate(arrays).transpose(0, 2, 3, 1)

  return Candidate(run, to_numpy, lambda: passes)


class Limits(NamedTuple):
  """Seconds that a framework needs for all pictures once, nothing around it.

  Attributes:
    forward: Of the logits.
    gradient: Of the loss's gradient by the pictures, its forward pass
      included.
    flops: Operations of that gradient, by XLA's count before it optimises.
  """

  forward: float
  gradient: float
  flops: float

  def cost(self, forward: float, backward: float) -> float:
    """Seconds of so many passes over all pictures, a gradient being both."""
    return forward * self.forward + backward * (self.gradient - self.forward)


def _limit_runs(
  subject: Subject, batch_size: int, mesh: Mesh
) -> tuple[dict[str, Callable[[], Any]], float]:
  """Bare passes over all pictures, of both frameworks if there is a twin.

  Returns:
    What to time, and the operations of a gradient, see `Limits`.
  """
  net, parts = _placed(
    subject.classifier,
    (jnp.asarray(subject.images), jnp.asarray(subject.labels)),
    batch_size,
    mesh,
  )

  def loss_gradient(classifier, images, labels):
    def loss(images):
      return jnp.sum(losses.cross_entropy(classifier(images), labels))

    return jax.grad(loss)(images)

  # Compiled ahead as our attacks are, so that a call costs as much around it.
  only_forward = _on_devices(lambda net, images: net(images), 1, mesh)
  forward = only_forward.lower(net, parts[0][0]).compile()
  lowered = _on_devices(loss_gradient, 2, mesh).lower(net, *parts[0])
  gradient = lowered.compile()
  # Of one device.
  flops = (lowered.cost_analysis() or {}).get('flops', 0.0) * len(parts)
  flops *= mesh.size
  runs: dict[str, Callable[[], Any]] = {
    'forward': lambda: jax.block_until_ready(
      [forward(net, part) for part, _ in parts]
    ),
    'gradient': lambda: jax.block_until_ready(
      [gradient(net, *part) for part in parts]
    ),
  }
  if subject.twin is None:
    return runs, flops
  import torch

  their_images = nets.to_torch(subject.images, subject.device)
  their_labels = torch.tensor(subject.labels.astype(np.int64)).to(
    subject.device
  )
  their_parts = list(
    zip(
      their_images.split(batch_size),
      their_labels.split(batch_size),
      strict=True,
    )
  )

  def over_parts(one):
    def run():
      for part in their_parts:
        one(*part)
      if subject.device != 'cpu':
        torch.cuda.synchronize()

    return run

  @torch.no_grad()
  def torch_forward(images, labels):
    del labels
    subject.twin(images)

  def torch_gradient(images, labels):
    images = images.detach().requires_grad_()
    loss = torch.nn.functional.cross_entropy(
      subject.twin(images), labels, reduction='sum'
    )
    torch.autograd.grad(loss, images)

  runs |= {
    'torch forward': over_parts(torch_forward),
    'torch gradient': over_parts(torch_gradient),
  }
  return runs, flops


def _reason(error: Exception) -> str:
  lines = str(error).strip().splitlines() or ['']
  named = '' if isinstance(error, UserError) else f'{type(error).__name__}: '
  return f'{named}{lines[0]}'[:160]


class Row(NamedTuple):
  """A line of the table: what was measured, or why nothing was."""

  name: str
  reason: str = ''
  seconds: float = math.nan
  turns: int = 0
  judged: Judged | None = None
  passes: Passes | None = None
  seconds_to_compile: float | None = None


def compare(
  attack: str,
  setting: Setting,
  subject: Subject,
  libraries: list[str],
  *,
  batch_size: int,
  num_slots: int | None,
  repeats: int,
  limit_s: float,
  count: bool,
  mesh: Mesh,
) -> tuple[list[Row], dict[str, Limits], dict[str, float]]:
  """Runs one attack of all libraries.

  Args:
    attack: Its name here.
    setting: Its hyperparameters.
    subject: Net and pictures.
    libraries: Names, `OURS` or of `peers.LIBRARIES`.
    batch_size: Pictures at a time, but for slots, which take all of them.
    num_slots: Slots of ours, or None.
    repeats: Turns of each candidate.
    limit_s: See `interleaved`.
    count: Whether to count passes of ours, for which it runs once more.
    mesh: Devices that share the pictures of ours.

  Returns:
    Rows in the order of `libraries`; limits by framework, 'jax' and 'torch';
    per cent of robust pictures after each part of pyautoattack.
  """
  rows: dict[str, Row] = {}
  runs: dict[str, Callable[[], Any]] = {}
  firsts: dict[str, float] = {}
  parts: dict[str, float] = {}

  def candidates(library: str) -> dict[str, Callable[[], Candidate]]:
    if library != OURS:
      return {
        library: lambda: _peer_candidate(
          library, attack, setting, subject, batch_size
        )
      }

    def ours(num_slots):
      made = attacks.make(setting.name, **setting.hyper)
      return _our_candidate(made, subject, num_slots, batch_size, count, mesh)

    if not setting.slots or num_slots is None:
      return {OURS: lambda: ours(None)}
    with_slots = {OURS: lambda: ours(num_slots)}
    if not setting.waiting:
      return with_slots
    return with_slots | {f'{OURS} (waiting batch)': lambda: ours(None)}

  for library in libraries:
    for name, make in candidates(library).items():
      watch = peers.stages(parts) if name == 'pyautoattack' else nullcontext()
      try:
        candidate = make()
        with watch:
          start = time.perf_counter()
          result = candidate.run()
          firsts[name] = time.perf_counter() - start
        images = candidate.to_numpy(result)
        fooled = subject.predict(images, library != OURS) != subject.labels
        epsilon = setting.hyper['epsilon'] if setting.budget else None
        rows[name] = Row(
          name,
          judged=judge(subject.images, images, fooled, epsilon),
          passes=candidate.counted() if candidate.counted else None,
          seconds_to_compile=candidate.seconds_to_compile,
        )
        runs[name] = candidate.run
      # Whatever a library raises is a line of the table.
      except Exception as error:
        rows[name] = Row(name, reason=_reason(error))

  bare, flops = _limit_runs(subject, batch_size, mesh)
  for name, run in bare.items():
    run()
    start = time.perf_counter()
    run()
    firsts[name] = time.perf_counter() - start
  measured = interleaved(runs | bare, firsts, repeats, limit_s)
  finished = [
    row._replace(seconds=measured[name][0], turns=measured[name][1])
    if name in runs
    else row
    for name, row in rows.items()
  ]
  limits = {
    framework: Limits(
      measured[f'{prefix}forward'][0], measured[f'{prefix}gradient'][0], flops
    )
    for framework, prefix in (('jax', ''), ('torch', 'torch '))
    if f'{prefix}forward' in measured
  }
  return finished, limits, parts
