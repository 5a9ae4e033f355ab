"""What a classifier says of a whole set."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.data.pipeline import Labelled, batches
from jaxadv.errors import explain_out_of_memory
from jaxadv.types import ClassifierLike


@jax.jit
def _classify(classifier, images):
  return jnp.argmax(classifier(images), axis=-1).astype(jnp.int32)


def predict(
  classifier: ClassifierLike, pictures: Labelled, batch_size: int = 128
) -> np.ndarray:
  """Classifies 8-bit pictures.

  Args:
    classifier: A deterministic `Classifier`.
    pictures: `Pictures` or an `AdversarialSet`.
    batch_size: Rows of a batch; no result depends on it.

  Returns:
    int32[N], classes.

  Raises:
    DataError: If memory runs out; says which batch size to try.
  """
  with explain_out_of_memory(batch_size):
    classes = [
      np.asarray(_classify(classifier, batch.images))
      for batch in batches(pictures, batch_size)
    ]
  return np.concatenate(classes)[: len(pictures.labels)]
