"""Measures how robust any function from pictures to logits is."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from numpy.typing import ArrayLike

from jaxadv import reports, storage
from jaxadv.attacks.inputs import attack_inputs, check_outputs
from jaxadv.classifier import as_classifier
from jaxadv.errors import UserError, check_at_least, check_choices
from jaxadv.evaluation import measuring, named, record
from jaxadv.evaluation.measuring import Subject, Work
from jaxadv.evaluation.named import NamedAttack, Own
from jaxadv.evaluation.record import Measured
from jaxadv.runs import Cell, Progress, freed_if_refused, run_cells
from jaxadv.storage import fingerprint

CHECKS = 'checks'
QUESTION = (
  'How many pictures does {} classify correctly when they are attacked?'
)


def measure_robustness(
  classifier: Callable[..., jax.Array],
  images: ArrayLike,
  labels: ArrayLike,
  *,
  attacks: str | tuple[str, Own] | Sequence[str | tuple[str, Own]] = (),
  norm: str = 'linf',
  epsilons: str | float | Sequence[str | float] = (),
  checks: bool = True,
  class_names: Sequence[str] = (),
  name: str = 'the classifier',
  seed: int = 0,
  batch_size: int = 256,
  workdir: str | None = None,
) -> Measured:
  """Measures any function from pictures to logits.

  Shows on standard error what is being done and the time left.

  Args:
    classifier: A `Classifier`, an NNX model, or a function that JAX can
      trace, from float32[B, H, W, C] in [0, 1] to logits [B, K].
    images: [N, H, W, C], uint8 or floating in [0, 1].
    labels: int[N], the true classes.
    attacks: Names of `jaxadv.attacks.ATTACKS`, perhaps with hyperparameters
      as in 'pgd:num_steps=40'; those usual in the norm if empty. An attack of
      yours is a pair ('name', attack): a function `epsilon -> Attack` if it
      has a budget, epsilon being traced, or an `Attack`, of which a success
      counts where its change is small enough. A single one need not be in a
      list.
    norm: 'linf', 'l2' or 'l1'.
    epsilons: Radii in image units, numbers or text such as '8/255', or a
      single one; those usual in the norm if empty. A number k / 255 is shown
      as such; text is shown as it is.
    checks: Whether to look for signs that attacks fail for the wrong reason.
    class_names: One a class, for the pictures of the report.
    name: What the classifier is, for the report.
    seed: Seed of all draws.
    batch_size: Pictures at a time.
    workdir: Folder for the report, the record and the parts that are
      finished: the same call resumes there, and so does one with other
      attacks. None writes nothing.

  Returns:
    What was measured of every picture; `evaluation.record.answer` says it in a
    sentence.

  Raises:
    UserError: If what was asked for cannot be, or `workdir` belongs to
      something else.
    DataError: If a picture or a logit is not finite, or memory or disk are
      full.

  Example:
    >>> mine = lambda epsilon: pgd(epsilon, epsilon / 8, 100)
    >>> measured = measure_robustness(
    ...   my_logits, images, labels, attacks=['apgd', ('my pgd', mine)]
    ... )
    >>> [f'{share.value:.0%}' for share in measured.worst()]
    ['79%', '75%', '42%', '17%']
  """
  started = time.monotonic()
  check_choices('norm', [norm], named.NORMS)
  work = work_of(
    [named.given_attack(each, norm) for each in _listed(attacks)],
    norm,
    [named.write_epsilon(each) for each in _listed(epsilons)],
    checks=checks,
    seed=seed,
    batch_size=batch_size,
  )
  inputs = attack_inputs(images, labels)
  pictures, shape = inputs.images, inputs.images.shape[1:]
  classifier = as_classifier(classifier)
  outputs = check_outputs(classifier, jax.random.key(0), inputs).out_avals[0]
  check(work, shape, outputs.shape[-1])
  work = work._replace(
    attacks=tuple(
      named.with_program(attack, classifier, shape) for attack in work.attacks
    )
  )
  subject = Subject(
    classifier,
    pictures,
    inputs.labels,
    inputs.source,
    tuple(class_names),
    name,
    {
      'pictures': fingerprint([pictures, inputs.labels]),
      'classifier': measuring.identity(classifier, pictures),
    },
  )
  with contextlib.ExitStack() as stack:
    folder = Path(workdir or stack.enter_context(tempfile.TemporaryDirectory()))
    if workdir:
      about = identity(work) | {'seed': seed, 'norm': norm}
      storage.open_workdir(folder, about | dict(subject.fingerprints))
      stack.enter_context(freed_if_refused(folder))
    progress = stack.enter_context(Progress(len(cells(work))))
    measured, _ = measure_cells(work, subject, folder, progress)
  assert measured is not None  # There are no other shards.
  if workdir:
    config = {'norm': norm, 'seed': seed, 'checks': checks}
    write_report(work, measured, folder, started, config=config)
  return measured


def work_of(
  attacks: Sequence[NamedAttack],
  norm: str,
  epsilons: Sequence[str],
  *,
  checks: bool,
  seed: int,
  batch_size: int,
) -> Work:
  """Puts together what to measure, with what is usual where nothing is given.

  Args:
    attacks: The attacks; empty: those usual in the norm.
    norm: One of `named.NORMS`.
    epsilons: Radii as `named.read_epsilons` takes them.
    checks: Whether to look for signs that attacks fail for the wrong reason.
    seed: Of all draws, at least 0.
    batch_size: Pictures at a time, at least 1.

  Raises:
    UserError: If a number is out of its range, or two attacks have one name.
  """
  check_at_least('seed', seed, 0)
  check_at_least('batch_size', batch_size, 1)
  usual = [named.read_attack(each, norm) for each in named.USUAL_ATTACKS[norm]]
  work = Work(
    tuple(attacks or usual),
    norm,
    named.read_epsilons(epsilons, norm),
    checks,
    seed,
    batch_size,
  )
  texts = [attack.text for attack in work.attacks]
  files = {attack.file_name for attack in work.attacks}
  if len(files) < len(texts) or len(set(texts)) < len(texts):
    raise UserError(f'attacks has one twice: {", ".join(texts)}')
  for reserved in (record.WORST, record.CHECK_PGD, CHECKS):
    if reserved in texts:
      raise UserError(
        f'an attack is called {reserved!r}, as a line of the report is; '
        'give it another name'
      )
  return work


def _listed(given: Any) -> list[Any]:
  """Makes a list of one of what is no list, or an attack with its name."""
  pair = isinstance(given, tuple) and len(given) == 2
  own = (
    pair
    and isinstance(given[0], str)
    and not isinstance(given[1], (str, tuple, list))
  )
  number = getattr(given, 'ndim', None) == 0  # An array, but nothing to list.
  if own or number or isinstance(given, str) or not isinstance(given, Iterable):
    return [given]
  return list(given)


def check(work: Work, shape: tuple[int, ...], num_classes: int) -> None:
  """Checks that the attacks fit pictures and classes; computes nothing.

  Raises:
    UserError: Naming the attack that does not.
  """
  named.check_attacks(work.attacks, work.epsilons, shape, num_classes)


def cells(work: Work) -> list[Cell]:
  """Lists the cells of a run: the checks, and one for each attack."""
  return [Cell(CHECKS, {})] * work.checks + [
    Cell(attack.file_name, {'attack': attack}) for attack in work.attacks
  ]


def cell_file(folder: Path, cell: Cell) -> Path:
  """Names the file with the result of a cell."""
  suffix = 'json' if cell.name == CHECKS else 'npz'
  return folder / 'cells' / f'{cell.name}.{suffix}'


def identity(work: Work) -> dict[str, Any]:
  """Gives what a workdir belongs to, besides settings, pictures and weights.

  Attacks and checks are cells of their own, and more can be added.
  """
  return {
    'experiment': 'verify',
    'code': storage.code_version(measuring.__name__),
    'epsilons': work.epsilons,
  }


def measure_cells(
  work: Work,
  subject: Subject,
  folder: Path,
  progress: Progress,
  shard: str = '0/1',
) -> tuple[Measured | None, list[str]]:
  """Runs the cells of this shard and gathers those of all shards.

  Args:
    work: What to do, and how.
    subject: What to measure.
    folder: Where the finished cells lie.
    progress: Shows which cell is under way.
    shard: See `runs.shard_of`.

  Returns:
    What was measured, None if no attack is finished; and the names of the
    cells that other shards still have to do.
  """

  def run(cell: Cell) -> Any:
    progress.note(cell.name)
    path = cell_file(folder, cell)
    if cell.name == CHECKS:
      return measuring.run_checks(work, subject, path)
    note = lambda done, total: progress.note(cell.name, done / total)
    return measuring.run_attack(
      work, subject, cell.settings['attack'], path, note
    )

  def read(cell: Cell) -> Any:
    return run(cell) if cell_file(folder, cell).exists() else None

  results, missing = run_cells(cells(work), shard, run, read, progress)
  checked = results.pop(CHECKS, None)
  outcomes = [
    (attack, results[attack.file_name])
    for attack in work.attacks
    if attack.file_name in results
  ]
  if not outcomes:
    return None, missing
  # The checks look at that themselves.
  doubts = [] if checked else measuring.doubts_about(work, subject)
  measured = Measured(subject, work.norm, work.radii, outcomes, checked, doubts)
  return measured, missing


def write_report(
  work: Work,
  measured: Measured,
  folder: Path,
  started: float,
  *,
  config: Mapping[str, Any],
  variant: str = 'quick',
  missing: Sequence[str] = (),
) -> reports.Record:
  """Writes the record, tables, figures and the page.

  Args:
    work: What was done.
    measured: The results.
    folder: The workdir.
    started: `time.monotonic()` at the start of the run.
    config: The settings, for the record.
    variant: Of the run.
    missing: Names of the cells that other shards still have to do.

  Returns:
    The record.
  """
  found = reports.Record(
    experiment='verify',
    variant=variant,
    config=dict(config)
    | {
      'attacks': [attack.text for attack, _ in measured.outcomes],
      'epsilons': list(measured.epsilons),
    },
    provenance=reports.provenance(
      seeds=[work.seed],
      seconds=time.monotonic() - started,
      fingerprints=measured.subject.fingerprints,
    ),
    rows=tuple(record.rows(measured)),
    missing=tuple(f'cell {name}: run its shard' for name in missing),
    question=QUESTION.format(measured.subject.name),
    answer=record.answer(measured),
    tables=tuple(record.tables(measured)),
    figures=tuple(record.figures(measured)),
    warnings=tuple(record.warnings(measured)),
  )
  reports.write_report(found, record.arrays(measured), folder)
  return found
