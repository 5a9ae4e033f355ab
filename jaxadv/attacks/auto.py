"""AutoAttack: the ensemble that the field measures robustness with."""

from __future__ import annotations

from jaxadv.attacks.apgd import apgd, apgd_t
from jaxadv.attacks.combine import sequence
from jaxadv.attacks.drive import Composite
from jaxadv.attacks.fab import fab_t
from jaxadv.attacks.square import square
from jaxadv.errors import UserError
from jaxadv.norms import Ball, Radius, as_ball


def auto_attack(
  epsilon: Radius | Ball,
  norm: str | None = None,
  version: str = 'standard',
  *,
  num_steps: int = 100,
  num_queries: int = 5000,
  num_targets: int = 9,
) -> Composite:
  """Runs APGD-CE, APGD-DLR towards 9 classes, FAB-T and Square in turn.

  A budget attack without parameters to tune: with the defaults, AutoAttack's
  standard version. Each part only works on the pictures that withstood those
  before, so run it with refilled slots (`evaluate(..., num_slots=32)`). A
  picture that withstands all of them costs 10 x 102 gradients, 9 x 100
  gradients with a forward pass each, and 5,002 forward passes.

  Args:
    epsilon: Radius in image units; a scalar or float32[B], traced or not. Or
      a ball.
    norm: 'linf' or 'l2'; None is that of the ball, or 'linf'.
    version: 'standard'.
    num_steps: Number of steps of each run of APGD and FAB, at least 1; 100
      in the paper.
    num_queries: Number of queries of Square, at least 1; 5,000 in the paper.
    num_targets: Number of rival classes of APGD-T and FAB-T, at least 1; 9
      in the paper. Of a classifier with fewer, all are tried.

  Returns:
    A `Composite`. A picture is robust, `~success`, if it is classified
    correctly when clean and no part succeeded within `epsilon`; it then
    holds the best point of Square. Success is true of the clean picture where
    that is misclassified.

  Raises:
    UserError: If a hyperparameter is unknown or lies outside its range, or
      the classifier has fewer than 4 classes.

  References:
    Croce and Hein, Reliable evaluation of adversarial robustness with an
    ensemble of diverse parameter-free attacks, 2020,
    https://arxiv.org/abs/2003.01690, section 5; order, hyperparameters and
    bookkeeping of github.com/fra31/auto-attack.
  """
  if version != 'standard':
    raise UserError(f"version is {version!r} but must be 'standard'")
  budget = as_ball(epsilon, norm, allowed=('linf', 'l2'), attack='AutoAttack')
  return sequence(
    [
      apgd(budget, num_steps),
      apgd_t(budget, num_steps, num_targets=num_targets),
      fab_t(budget.norm, num_steps, num_targets=num_targets, epsilon=budget),
      square(budget, num_queries),
    ]
  )
