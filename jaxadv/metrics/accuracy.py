"""Shares of right answers, with what is needed for their intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxadv.errors import UserError
from jaxadv.metrics.intervals import Interval, wilson
from jaxadv.metrics.roc import as_flags


class Share(NamedTuple):
  """A share of pictures; those of two batches add up field by field.

  Attributes:
    hits: Pictures of which something holds.
    n: Pictures looked at.
  """

  hits: int
  n: int

  @property
  def value(self) -> float:
    """The share in [0, 1]; NaN if there are no pictures."""
    return self.hits / self.n if self.n else float('nan')

  def interval(self, level: float = 0.95) -> Interval:
    """Computes Wilson's interval of the share."""
    return wilson(self.hits, self.n, level)


def share(holds: ArrayLike, among: ArrayLike | None = None) -> Share:
  """Counts the pictures of which something holds.

  Args:
    holds: bool[n].
    among: bool[n], the pictures to look at (a mask); all if None.

  Returns:
    The share.

  Raises:
    UserError: If the shapes differ, or a value is neither True nor False.
  """
  holds = as_flags(holds, 'holds')
  among = np.ones_like(holds) if among is None else as_flags(among, 'among')
  if holds.shape != among.shape:
    raise UserError(
      f'shapes {holds.shape} and {among.shape} differ; give one value a picture'
    )
  return Share(int((holds & among).sum()), int(among.sum()))


def accuracy(
  predicted: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None
) -> Share:
  """Counts right predictions; on attacked pictures this is robust accuracy.

  Args:
    predicted: int[n], classes.
    labels: int[n], true classes.
    mask: bool[n], False in rows that are padding; all rows if None.

  Returns:
    The share of the unmasked pictures that are classified correctly.

  Raises:
    UserError: If the shapes differ.
  """
  predicted, labels = np.asarray(predicted), np.asarray(labels)
  if predicted.shape != labels.shape:
    raise UserError(
      f'{predicted.shape} predictions for {labels.shape} labels; give as many '
      'of one as of the other'
    )
  return share(predicted == labels, mask)


def attack_success_rate(success: ArrayLike, clean_correct: ArrayLike) -> Share:
  """Counts successful attacks on pictures that were right when clean.

  Args:
    success: bool[n], whether the attack reached its aim.
    clean_correct: bool[n], whether the clean picture is classified correctly.

  Returns:
    The share among the correctly classified pictures.

  Raises:
    UserError: If the shapes differ.
  """
  return share(success, clean_correct)


def robust_accuracy(success: ArrayLike, clean_correct: ArrayLike) -> Share:
  """Counts pictures that are right when clean and withstand the attack.

  Args:
    success: bool[n], whether an untargeted attack reached its aim.
    clean_correct: bool[n], whether the clean picture is classified correctly.

  Returns:
    The share among all pictures.

  Raises:
    UserError: If the shapes differ.
  """
  attack = attack_success_rate(success, clean_correct)
  return Share(attack.n - attack.hits, np.size(success))
