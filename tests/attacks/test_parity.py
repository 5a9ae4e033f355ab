"""The same network and pictures as Foolbox's attacks; see make_golden.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, norms

BUDGET = {
  'fgsm': lambda epsilon: attacks.fgsm(epsilon),
  'bim': lambda epsilon: attacks.bim(norms.linf_ball(epsilon), epsilon / 4, 10),
  **{
    f'pgd_{norm}': lambda epsilon, norm=norm: attacks.pgd(
      norms.ball(norm, epsilon), epsilon / 4, 10, random_start=False
    )
    for norm in norms.BALLS
  },
}


@pytest.mark.parametrize('name', BUDGET)
def test_budget_attacks_end_at_the_same_pictures(name, golden, run):
  radius = {'pgd_l2': 'epsilon_l2', 'pgd_l1': 'epsilon_l1'}
  epsilon = golden[radius.get(name, 'epsilon')].item()
  result = run(BUDGET[name](epsilon))
  assert 0 < golden[f'{name}_success'].sum()
  np.testing.assert_array_equal(result.success, golden[f'{name}_success'])
  same = np.abs(result.images - golden[name]) <= 2e-6
  # A gradient entry near zero may take the other sign.
  assert same.mean() == 1 if name == 'fgsm' else same.mean() > 0.995


@pytest.mark.parametrize('norm', ['l2', 'linf'])
def test_deepfool_finds_the_same_distances(norm, golden, run):
  hyper = {'overshoot': 0.02, 'num_candidates': 10, 'norm': norm}
  result = run(attacks.deepfool(50, **hyper))
  theirs = golden['deepfool' if norm == 'l2' else 'deepfool_linf']
  distance = norms.ball(norm, 1.0).distance
  size = distance(result.images - golden['images'])
  expected = distance(theirs - golden['images'])
  assert jnp.all(result.success)
  np.testing.assert_allclose(jnp.median(size), jnp.median(expected), rtol=0.01)
  np.testing.assert_allclose(size, expected, rtol=0.02)
