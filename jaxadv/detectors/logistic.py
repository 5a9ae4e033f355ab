"""Many small logistic regressions at once, on the host in float64."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

# Newton's method doubles the digits in every step once it is near; classes
# that a plane separates take a few dozen steps, all others less than ten.
_MAX_STEPS = 200
_PRECISE = 1e-16


def fit_logistic(
  values: np.ndarray,
  positive: np.ndarray,
  used: np.ndarray,
  inverse_penalties: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Fits logistic regressions by Newton's method, all of them at once.

  Each minimises C * sum(log(1 + exp(-s f))) + ||w||^2 / 2 over the rows that
  it uses, s being 1 for a positive row and else -1, with f = w^T v + b of
  features v that have mean 0 and deviation 1 over those rows. The penalty
  keeps w finite also where a plane separates the rows; b is free of it.

  Args:
    values: float[N, L], features.
    positive: bool[N].
    used: bool[F, N], the rows that a regression learns from; of both classes.
    inverse_penalties: float[C], above 0, as of scikit-learn's `C`.

  Returns:
    Weights float64[F, C, L] and biases float64[F, C] for `values` as they are
    given: positive where values @ w + b is above 0.
  """
  values = np.asarray(values, np.float64)
  share = used / used.sum(axis=1, keepdims=True)
  mean = (share @ values)[:, None]
  around = values - mean  # float64[F, N, L]
  scale = np.sqrt(np.einsum('fn,fnl->fl', share, around**2))[:, None]
  # What does not vary, but for rounding, is no feature.
  scale = np.where(scale > 1e-7 * np.abs(mean), scale, 1)
  rows = np.pad(around / scale, [(0, 0), (0, 0), (0, 1)], constant_values=1)
  width = rows.shape[-1]
  # So that the Hessians of all penalties are one product. By einsum, since
  # BLAS's threads wait for each other when the cores are busy: 20 times slower.
  squares = (rows[..., :, None] * rows[..., None, :]).reshape(*used.shape, -1)
  costs = inverse_penalties[:, None] * used[:, None]  # float64[F, C, N]
  penalty = np.append(np.ones(width - 1), 0.0)
  sign = np.where(positive, 1.0, -1.0)

  def judge(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    margins = np.einsum('fcd,fnd->fcn', found, rows)
    losses = np.sum(costs * np.logaddexp(0, -sign * margins), axis=-1)
    return margins, losses + found**2 @ penalty / 2

  found = np.zeros((*costs.shape[:2], width))
  margins, least = judge(found)
  for _ in range(_MAX_STEPS):
    chance = expit(margins)
    slope = np.einsum('fcn,fnd->fcd', costs * (chance - positive), rows)
    slope += penalty * found
    bend = np.einsum('fcn,fnk->fck', costs * chance * (1 - chance), squares)
    bend = bend.reshape(*slope.shape, width) + np.diag(penalty)
    step = np.linalg.solve(bend, slope[..., None])[..., 0]
    decrease = np.sum(step * slope, axis=-1)
    if (decrease <= _PRECISE * np.maximum(least, 1)).all():
      break
    size = np.ones_like(least)
    while True:
      tried = found - size[..., None] * step
      margins, value = judge(tried)
      worse = value > least - 1e-4 * size * decrease + 1e-12 * least
      if not worse.any():
        break
      size[worse] /= 2
    found, least = tried, value
  weights = found[..., :-1] / scale
  return weights, found[..., -1] - np.sum(weights * mean, axis=-1)
