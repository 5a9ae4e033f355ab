"""Logistic regressions of a batch, against scikit-learn's one by one."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxadv.detectors import mahalanobis as module
from jaxadv.detectors.logistic import fit_logistic
from jaxadv.metrics.roc import auc

PENALTIES = np.logspace(-4, 4, 10)


def samples(apart, num=90, seed=0):
  """Three features off centre, one of them constant."""
  rng = np.random.default_rng(seed)
  positive = np.arange(num) % 3 == 0
  values = rng.normal(size=(num, 3)) * (5, 0.1, 0) + (-50, 2, 7)
  values[:, :2] += apart * positive[:, None] * (5, -0.1)
  return values, positive


def peer(penalty, values, positive):
  """What scikit-learn finds, solved as precisely as it can."""
  chain = make_pipeline(
    StandardScaler(),
    LogisticRegression(
      C=penalty, solver='newton-cholesky', tol=1e-10, max_iter=1000
    ),
  )
  return chain.fit(values, positive)


@pytest.mark.parametrize('apart', [0.5, 20.0], ids=['mixed', 'separable'])
def test_equals_scikit_learn_one_by_one(apart):
  values, positive = samples(apart)
  used = np.ones((2, len(positive)), bool)
  used[1, 10:40] = False
  weights, bias = fit_logistic(values, positive, used, PENALTIES)
  assert weights.shape == (2, 10, 3) and np.isfinite(weights).all()
  for fold, index in np.ndindex(2, 10):
    rows = used[fold]
    wanted = peer(PENALTIES[index], values[rows], positive[rows])
    np.testing.assert_allclose(
      values @ weights[fold, index] + bias[fold, index],
      wanted.decision_function(values),
      rtol=1e-5,
      atol=1e-5,
    )
  # The feature that does not vary weighs nothing.
  np.testing.assert_allclose(weights[..., 2], 0, atol=1e-6)


def test_choice_is_that_of_a_grid_search_over_the_same_folds(monkeypatch):
  """Magnitude, penalty and weights, versions of a picture in one fold."""
  rng = np.random.default_rng(1)
  penalties = np.array([1e-4, 0.3, 1e3])
  monkeypatch.setattr(module, '_INVERSE_PENALTIES', penalties)

  def scored(num):
    attacked = np.arange(3 * num) % 3 == 0
    values = rng.normal(-50, 10, (3 * num, 2, 2))
    values[:, :, 1] -= attacked[:, None] * (5, 15)
    return module._Scored(values, attacked, np.arange(3 * num) // 3)

  train, valid = scored(40), scored(30)
  best = ()
  for index in range(2):
    search = GridSearchCV(
      make_pipeline(StandardScaler(), LogisticRegression(tol=1e-10)),
      {'logisticregression__C': penalties},
      cv=StratifiedGroupKFold(5),
    ).fit(train.values[:, index], train.attacked, groups=train.source)
    scores = search.decision_function(valid.values[:, index])
    best = max(best, (auc(scores, valid.attacked), index, *scores[:5]))
  index, weights, bias = module._weigh_layers(train, valid)
  assert index == best[1] == 1
  found = valid.values[:5, index] @ weights + bias
  np.testing.assert_allclose(found, best[2:], rtol=1e-4, atol=1e-4)
