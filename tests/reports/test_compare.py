"""Whether two runs agree within their intervals."""

import numpy as np
import pytest

from jaxadv import reports
from jaxadv.errors import UserError
from jaxadv.reports import compare


def record(*values, half=1.0, network='a'):
  rows = [
    reports.Row({'backbone': network, 'cell': i}, 'AUC', v, v - half, v + half)
    for i, v in enumerate(values)
  ]
  unsure = reports.Row({'backbone': network, 'cell': 9}, 'AUC', 1.0)
  return reports.Record(
    'unseen', 'quick', {}, {'seconds': 1}, rows=(*rows, unsure)
  )


def test_shares_and_the_furthest_figure_are_counted():
  first = record(50, 60, 70, 80)
  second = record(50, 60.5, 71.5, 84)
  (found,) = compare.compare(first, second, 'backbone')
  assert (found.n, found.inside, found.equal) == (4, 0.5, 0.25)
  assert found.furthest == pytest.approx(4 / np.sqrt(2))
  assert found.labels['cell'] == 3


def test_each_has_to_lie_in_the_others_interval():
  # The wide interval holds the narrow run's number, but not the other way.
  (found,) = compare.compare(record(50), record(51.5, half=5))
  assert found.inside == 0


def test_runs_without_common_rows_are_refused():
  with pytest.raises(UserError, match='in common'):
    compare.compare(record(50), record(50, network='b'))


def test_the_command_prints_a_line_a_group(tmp_path, capsys):
  for name, value in (('one', 50), ('two', 52)):
    reports.write(record(value), {}, tmp_path / name)
  folders = [str(tmp_path / 'one'), str(tmp_path / 'two')]
  assert compare.main([*folders, '--by=backbone']) == 0
  assert 'AUC a: 1 figures, 0.0% in' in capsys.readouterr().out
  assert compare.main([folders[0], str(tmp_path / 'none')]) == 2
