"""How well the digit alone tells the shuffled labels, for this and other draws.

After `python launch.py --exp=unseen_transfer`, from the root of the repository:
`python -m results.connection.label_draws` printed
  this draw 0.627, 400 others 0.502 with a standard deviation of 0.055
"""

import dataclasses

import numpy as np
from sklearn.metrics import roc_auc_score

from experiments.connection import unseen_transfer
from experiments.connection.protocol import study

NUM_DRAWS = 400


def main():
  """Prints the AUC of this draw, and mean and deviation over others."""
  config = dataclasses.replace(
    unseen_transfer.get_config('quick'), cache_dir='runs/cache'
  )
  prepared = study.prepare(config, 'runs/label-draws', lambda text: None)
  sets = prepared.collection.sets
  train, _, test = study.split(config, sets)
  clean = list(sets).index('clean')
  digit = np.concatenate([pictures.labels for pictures in sets.values()])

  def auc(labels):
    """AUC on test pictures of the share of positives of a digit in training."""
    seen, unseen = train[clean], test[clean]
    share = np.array(
      [
        (labels[seen][digit[seen] == d].sum() + 0.5)
        / ((digit[seen] == d).sum() + 1)
        for d in range(10)
      ]
    )
    return roc_auc_score(labels[unseen], share[digit[unseen]])

  this = auc(study.shuffled_labels(config, sets).ravel())
  others = [
    auc(
      study.shuffled_labels(
        dataclasses.replace(config, seed=1 + draw), sets
      ).ravel()
    )
    for draw in range(NUM_DRAWS)
  ]
  print(
    f'this draw {this:.3f}, {NUM_DRAWS} others {np.mean(others):.3f} with a '
    f'standard deviation of {np.std(others):.3f}'
  )


if __name__ == '__main__':
  main()
