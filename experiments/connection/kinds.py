"""The eight kinds of adversarial picture that the paper compares."""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
  """A kind of adversarial picture.

  Attributes:
    name: How code, flags and files call it.
    paper: How Agarwal et al. (2022) call it.
    category: 'natural', 'artificial' or 'semantic'.
  """

  name: str
  paper: str
  category: str


KINDS = (
  Kind('natural', 'IN-A', 'natural'),
  Kind('natural_plus', 'IN-A+', 'natural'),
  Kind('deepfool', 'DF', 'artificial'),
  Kind('fgsm', 'FGSM', 'artificial'),
  Kind('pgd', 'PGD', 'artificial'),
  Kind('ni_plus', 'NI+', 'semantic'),
  Kind('ni_minus', 'NI-', 'semantic'),
  Kind('hsv', 'HSV', 'semantic'),
)
