"""One of several hosts, or the only one: trains, attacks, keeps (test_hosts).

`python -m tests.hosts_worker FOLDER [ADDRESS NUM_HOSTS INDEX]`; the folder is
shared. The first host leaves found.npz there.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from jaxadv import hosts
from jaxadv.attacks import make
from jaxadv.attacks.evaluate import evaluate
from jaxadv.classifier import from_function
from jaxadv.errors import UserError
from jaxadv.storage import Cache, read_npz, write_npz
from jaxadv.training import TrainConfig, data_mesh, fit, measure_members
from tests.training import nets


def refuse():
  raise UserError('refused')


def main(folder, address=None, num_hosts=1, index=0):
  if address:
    hosts.join(address, int(num_hosts), int(index))
  assert hosts.is_first() == (int(index) == 0)
  assert jax.device_count() == 4
  # Every host has something else to say; the first is listened to.
  assert hosts.on_first(lambda: [int(index), 'x' * 300]) == [0, 'x' * 300]
  assert hosts.agree(np.full(3, int(index))).tolist() == [0, 0, 0]
  try:
    hosts.on_first(refuse)
  except UserError as error:
    assert str(error) == 'refused'
  else:
    raise AssertionError('the refusal stayed with the first host')

  mesh = data_mesh()
  data = nets.make_data()
  data['labels'] = data['labels'][:1]

  def train(folder, work):
    result = fit(
      jax.random.key(0),
      nets.TASK,
      data,
      nets.TRAIN,
      nets.VALID,
      # SGD: Adam turns gradients that are nothing but rounding into steps.
      TrainConfig(
        num_epochs=2,
        batch_size=16,
        learning_rate=0.01,
        optimizer='sgd:momentum=0.9',
      ),
      mesh=mesh,
      checkpoint_dir=work,
      checkpoint_every=1,
    )
    logits = measure_members(
      nets.TASK,
      jax.tree.map(lambda leaf: leaf[None], result.state),
      data,
      nets.VALID,
      batch_size=16,
      mesh=mesh,
    )['logits']
    write_npz(folder / 'trained.npz', logits=logits, **result.history)
    # What this host alone computes with the state stays on this host.
    assert jax.tree.leaves(result.state)[0].sum().is_fully_addressable

  def alone(folder, work):
    del folder
    (work / 'mine').mkdir()

  cache = Cache(Path(folder) / 'cache')
  cache.get_or_make('alone', 1, {}, alone, alone=True)
  entries = [cache.get_or_make('trained', 1, {}, train) for _ in range(2)]
  found = read_npz(entries[0] / 'trained.npz')

  weights = jax.random.normal(jax.random.key(1), (8 * 8, 3))
  linear = from_function(
    lambda weights, images: images.reshape(len(images), -1) @ weights, weights
  )
  images = data['images']
  labels = np.asarray(linear(images)).argmax(-1)
  attack = make('pgd', epsilon=0.1, step_size=0.05, num_steps=3)
  for _ in range(2):
    attacked = evaluate(
      attack,
      jax.random.key(2),
      linear,
      images,
      labels,
      batch_size=32,
      mesh=mesh,
      resume_dir=Path(folder) / 'resume',
    )
  if hosts.is_first():
    write_npz(
      Path(folder) / 'found.npz',
      images=attacked.images,
      success=attacked.success_uint8,
      **found,
    )
  hosts.wait('end')


if __name__ == '__main__':
  main(*sys.argv[1:])
