"""Training of classifiers and detectors, one network or several at once.

`fit` trains one network, `fit_members` several independent ones in one
compiled program; `Task` says what is trained, `TrainConfig` how.
"""

from jaxadv.training.checkpoints import delete_checkpoints
from jaxadv.training.loop import (
  FitResult,
  fit,
  fit_members,
  measure_members,
  take_member,
)
from jaxadv.training.mesh import data_mesh, replicate
from jaxadv.training.optimizers import Group
from jaxadv.training.state import TrainConfig, TrainState
from jaxadv.training.tasks import (
  Task,
  alternate,
  classification,
  gather_images,
  linen_apply,
  minimise,
)

__all__ = [
  'FitResult',
  'Group',
  'Task',
  'TrainConfig',
  'TrainState',
  'alternate',
  'classification',
  'data_mesh',
  'delete_checkpoints',
  'fit',
  'fit_members',
  'gather_images',
  'linen_apply',
  'measure_members',
  'minimise',
  'replicate',
  'take_member',
]
