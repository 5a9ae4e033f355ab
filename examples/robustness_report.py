# %% [markdown]
# # How robust is it? A report
#
# Two networks of the same shape learn handwritten digits: one from clean
# pictures, the other from attacked ones (adversarial training). Both are
# measured under several attacks, with checks for signs that the numbers
# flatter them. A minute on a CPU; nothing is downloaded.

# %%
import tempfile

import jax
import numpy as np
import optax
from flax import nnx

import jaxadv
from jaxadv.evaluation import measure_robustness
from jaxadv.evaluation.record import answer

key = jax.random.key(0)
# Their order is that of the writers; shuffled, both parts have the same ones.
digits = jaxadv.data.shuffled(jaxadv.data.load('digits', image_size=16), seed=0)
train = jaxadv.data.subset(digits, slice(1597))
test = jaxadv.data.subset(digits, slice(1597, None))

# %% [markdown]
# ## The network


# %%
class Net(nnx.Module):
  """Two convolutions with stride and a linear layer."""

  def __init__(self, rngs):
    """Draws the weights."""
    self.first = nnx.Conv(3, 16, (3, 3), strides=2, rngs=rngs)
    self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
    self.logits = nnx.Linear(4 * 4 * 32, 10, rngs=rngs)

  def __call__(self, images):
    """Gives the logits, float32[B, 10]."""
    x = nnx.relu(self.first(images))
    x = nnx.relu(self.second(x))
    return self.logits(x.reshape(len(x), -1))


# %% [markdown]
# ## Training, with or without an attack
#
# An attack is a pure function of keys, classifier, images and labels, so it
# may stand inside a compiled training step. `jaxadv.defences.fit_adversarial`
# does the same with more to choose from.

# %%
weak = jaxadv.attacks.make('pgd:epsilon=16/255:num_steps=5')


def fit(attack):
  """Trains a network, on the pictures that an attack makes if there is one."""
  net = Net(nnx.Rngs(0))
  optimizer = nnx.Optimizer(net, optax.adam(1e-3), wrt=nnx.Param)

  @nnx.jit
  def train_step(net, optimizer, images, labels, keys):
    if attack is not None:
      images, _ = attack(keys, jaxadv.from_nnx(net), images, labels)

    def loss(net):
      return optax.softmax_cross_entropy_with_integer_labels(
        net(images), labels
      ).mean()

    optimizer.update(net, nnx.grad(loss)(net))

  rng = np.random.default_rng(0)
  for step in range(400):
    rows = rng.integers(len(train.labels), size=64)
    keys = jax.random.split(jax.random.fold_in(key, step), 64)
    images = np.float32(train.images[rows] / 255)
    train_step(net, optimizer, images, train.labels[rows], keys)
  return net


networks = {'plain': fit(None), 'adversarially trained': fit(weak)}

# %% [markdown]
# ## The measurement
#
# `worst()` counts the pictures that stay correct under every attack. The
# report has the tables, the curves and pictures of attacks.

# %%
folder = tempfile.mkdtemp()
measured = {}
for name, net in networks.items():
  measured[name] = measure_robustness(
    net,
    test.images,
    test.labels,
    attacks=['pgd:num_steps=20', 'apgd:num_steps=20', 'ddn:num_steps=40'],
    epsilons=['4/255', '8/255', '16/255'],
    name=f'the {name} network',
    workdir=f'{folder}/{name}',
  )

# %%
for name, each in measured.items():
  print(f'{name}: {each.correct.mean():.1%} correct when clean')
  for epsilon, share in zip(each.epsilons, each.worst(), strict=True):
    low, high = share.interval()
    print(f'  {epsilon}: {share.value:.1%} ({low:.1%} to {high:.1%})')
  print(f'  {answer(each)}')
  print(f'  report: {folder}/{name}/report.html')
