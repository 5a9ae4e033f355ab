# %% [markdown]
# # A detector, and an attack that knows it
#
# A detector learns to tell attacked digits from clean ones, and flags nearly
# all of them. Then the attacker is told of the detector. Half a minute on a
# CPU; nothing is downloaded.

# %%
import jax
import numpy as np
from sklearn.neural_network import MLPClassifier

import jaxadv
from jaxadv.attacks.adaptive import evading
from jaxadv.metrics.roc import threshold_at_fpr

key = jax.random.key(0)
# Their order is that of the writers; shuffled, all parts have the same ones.
digits = jaxadv.data.shuffled(jaxadv.data.load('digits'), seed=0)
train = jaxadv.data.subset(digits, slice(800))
known = jaxadv.data.subset(digits, slice(800, 1400))
test = jaxadv.data.subset(digits, slice(1400, None))

# %% [markdown]
# ## The classifier
#
# Any function from pictures to logits will do. This one is a network of
# scikit-learn, written in JAX with the weights that it has learnt.

# %%
flat = train.images.reshape(800, -1) / 255
mlp = MLPClassifier(64, early_stopping=True, random_state=0)
mlp.fit(flat, train.labels)


def logits(weights, images):
  """Gives the logits, float32[B, 10]."""
  (first, second), (bias, last_bias) = weights
  hidden = jax.nn.relu(images.reshape(len(images), -1) @ first + bias)
  return hidden @ second + last_bias


weights = jax.tree.map(np.float32, (mlp.coefs_, mlp.intercepts_))
classifier = jaxadv.from_function(logits, weights)

# %% [markdown]
# ## The detector
#
# It is fitted on clean and attacked versions of half of the pictures, and
# measured on the others; a picture and its attacked version are always on the
# same side.

# %%
attack = jaxadv.attacks.make('pgd:epsilon=16/255:num_steps=20')
evaluation = jaxadv.evaluate(
  attack, key, classifier, known.images, known.labels
)
detector = jaxadv.detectors.network_detector()
measured = jaxadv.detectors.measure(
  key,
  detector,
  classifier,
  known,
  known._replace(images=evaluation.images_uint8),
)
print(f'the attack: {evaluation.attack_success_rate:.1%} success')
print(f'the detector: AUC {measured.auc:.3f}')

# %% [markdown]
# In use, a detector has a threshold. Here it is the one that flags 5 % of
# clean pictures. A *score* is positive where a picture is flagged.

# %%
clean_scores = measured.scores[~measured.attacked]
threshold = threshold_at_fpr(clean_scores, 0.05)


def score(images):
  """Scores images, float32[B]; above 0 a picture is flagged."""
  return measured.fitted(images) - threshold


# %% [markdown]
# ## Both attacks on new pictures
#
# The oblivious attack knows the classifier alone. The adaptive one is the same
# attack put through `evading`: it has to be misclassified *and* not flagged.
# Compare how many pictures of each get through.

# %%
attacks = {'oblivious': attack, 'adaptive': evading(attack, score)}
passed = {}
for name, each in attacks.items():
  found = jaxadv.evaluate(each, key, classifier, test.images, test.labels)
  fooled = classifier(found.images_uint8).argmax(-1) != test.labels
  flagged = score(found.images_uint8) > 0
  passed[name] = float((fooled & ~flagged)[found.correct].mean())
  print(
    f'{name}: {fooled[found.correct].mean():.1%} misclassified, '
    f'{flagged[found.correct].mean():.1%} flagged, '
    f'{passed[name]:.1%} misclassified and not flagged'
  )

# %% [markdown]
# A detector is worth what it holds against the second attack. It is measured
# on the pictures rounded to 8 bit, as a file would hold them.
