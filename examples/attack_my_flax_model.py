# %% [markdown]
# # Attack a Flax model of your own
#
# A small convolutional network learns handwritten digits with Optax. Then it
# is attacked: once, over several radii, and by an attack that looks for the
# smallest change. A minute on a CPU; nothing is downloaded.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxadv

key = jax.random.key(0)
# Their order is that of the writers; shuffled, both parts have the same ones.
digits = jaxadv.data.shuffled(jaxadv.data.load('digits', image_size=16), seed=0)
train = jaxadv.data.subset(digits, slice(1297))
test = jaxadv.data.subset(digits, slice(1297, None))

# %% [markdown]
# ## The network and its training
#
# Nothing here is special to jaxadv. Take your own network and loop instead,
# only keep the pictures in [0, 1]: what your network does to them first
# (subtracting a mean, say) belongs inside of it, or into `preprocess` of
# `jaxadv.from_linen`.


# %%
class Net(nn.Module):
  """Two convolutions with stride and a linear layer."""

  @nn.compact
  def __call__(self, images):
    """Gives the logits, float32[B, 10]."""
    x = nn.relu(nn.Conv(16, (3, 3), strides=2)(images))
    x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
    return nn.Dense(10)(x.reshape(len(x), -1))


net = Net()
variables = net.init(key, jnp.zeros((1, 16, 16, 3)))
optimizer = optax.adam(1e-3)
opt_state = optimizer.init(variables)


@jax.jit
def train_step(variables, opt_state, images, labels):
  """Takes one step down the cross-entropy of a batch."""

  def loss(variables):
    logits = net.apply(variables, images)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, labels
    ).mean()

  updates, opt_state = optimizer.update(jax.grad(loss)(variables), opt_state)
  return optax.apply_updates(variables, updates), opt_state


rng = np.random.default_rng(0)
for _ in range(300):
  rows = rng.integers(len(train.labels), size=64)
  variables, opt_state = train_step(
    variables, opt_state, train.images[rows] / 255, train.labels[rows]
  )

# %% [markdown]
# ## One attack
#
# The module with its variables is a classifier. An attack is a value that you
# can build in Python, `jaxadv.attacks.pgd(8 / 255, num_steps=20)`, or write as
# on the command line. `evaluate` runs it on a whole set, as uint8 or as floats
# in [0, 1].

# %%
classifier = jaxadv.from_linen(net, variables)
attack = jaxadv.attacks.make('pgd:epsilon=16/255:num_steps=20')
evaluation = jaxadv.evaluate(attack, key, classifier, test.images, test.labels)
print(evaluation)

# %% [markdown]
# ## Several radii
#
# One compilation serves them all.

# %%
epsilons = [8 / 255, 16 / 255, 32 / 255]
curve = jaxadv.attacks.evaluate_over(
  lambda epsilon: jaxadv.attacks.pgd(epsilon, num_steps=20),
  epsilons,
  key,
  classifier,
  test.images,
  test.labels,
)
print(f'clean: {curve[0].clean_accuracy:.1%} correct')
for epsilon, each in zip(epsilons, curve, strict=True):
  print(f'{epsilon * 255:.0f}/255: {each.robust_accuracy:.1%} still correct')

# %% [markdown]
# ## The smallest change
#
# DDN looks for the nearest picture of another class in L2. Its pictures are on
# the 256 grey levels, so they are still adversarial when saved.

# %%
nearest = jaxadv.evaluate(
  jaxadv.attacks.make('ddn:num_steps=50'),
  key,
  classifier,
  test.images,
  test.labels,
)
reached = nearest.correct & nearest.success
print(f'median L2 distance: {np.median(nearest.l2[reached]):.2f}')
print(f'saved as 8-bit pictures: {nearest.survives_uint8:.1%} still succeed')

# %% [markdown]
# Clean pictures above, the attacked ones below, with what the network sees in
# them.

# %%
rows = np.flatnonzero(reached)[:6]
predicted = classifier(nearest.images_uint8[rows]).argmax(-1)
figure, axes = plt.subplots(2, 6, figsize=(9, 3.4))
for column, row in enumerate(rows):
  above, below = axes[:, column]
  above.imshow(test.images[row])
  above.set_title(test.labels[row])
  below.imshow(nearest.images_uint8[row])
  below.set_title(predicted[column])
  above.axis('off')
  below.axis('off')
