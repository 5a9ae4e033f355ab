"""The examples run from top to bottom and show what they say."""

import pathlib
import runpy
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / 'examples'
PATHS = sorted(EXAMPLES.glob('*.py'))


@pytest.fixture
def run(monkeypatch, tmp_path):
  """Gives the names that an example leaves."""
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  yield lambda name: runpy.run_path(str(EXAMPLES / name), run_name='__main__')
  plt.close('all')


@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)
def test_they_open_as_notebooks(path):
  before, *cells = path.read_text(encoding='utf-8').split('# %%')
  assert not before and cells[0].startswith(' [markdown]\n# # ')
  for cell in cells:
    head, _, body = cell.partition('\n')
    compile(body, path.name, 'exec')  # No cell ends amid a statement.
    text = [line for line in body.splitlines() if line]
    if head == ' [markdown]':
      assert all(line.startswith('#') for line in text)
    else:
      assert head == '' and text


@pytest.mark.slow
def test_attack_my_flax_model(run):
  names = run('attack_my_flax_model.py')
  curve = names['curve']
  assert curve[0].clean_accuracy > 0.9
  shares = [each.robust_accuracy for each in curve]
  assert 0.9 > shares[0] > shares[1] > shares[2]
  # Written as text and built in Python, it is one attack.
  evaluation = names['evaluation']
  np.testing.assert_array_equal(evaluation.success, curve[1].success)
  assert evaluation.linf.max() <= 16 / 255 + 1e-6
  assert names['nearest'].survives_uint8 > 0.99
  assert (names['predicted'] != names['test'].labels[names['rows']]).all()


@pytest.mark.slow
def test_detector_and_adaptive_attack(run):
  names = run('detector_and_adaptive_attack.py')
  assert names['evaluation'].attack_success_rate > 0.4
  assert names['measured'].auc > 0.9
  passed = names['passed']
  assert passed['oblivious'] < 0.05 < 0.15 < passed['adaptive']


@pytest.mark.slow
def test_robustness_report(run):
  names = run('robustness_report.py')
  plain, trained = (
    [share.value for share in each.worst()]
    for each in names['measured'].values()
  )
  assert min(each.correct.mean() for each in names['measured'].values()) > 0.9
  assert plain[0] > plain[2] and trained[2] > plain[2] + 0.1
  for name in names['networks']:
    assert (pathlib.Path(names['folder']) / name / 'report.html').exists()
