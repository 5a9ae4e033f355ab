"""Cells, shards of them, and what other shards have done."""

import pytest

from jaxadv.errors import UserError
from jaxadv.runs import Cell, Progress, run_cells, shard_of

CELLS = [Cell(str(i), {'number': i}) for i in range(7)]


@pytest.mark.parametrize('count', [1, 2, 3, 10])
def test_shards_are_disjoint_and_together_all_cells(count):
  parts = [shard_of(CELLS, f'{i}/{count}') for i in range(count)]
  assert sorted(sum(parts, []), key=CELLS.index) == CELLS
  sizes = [len(part) for part in parts]
  assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
  'shard', ['', '1', '1/', '2/2', '-1/2', '0/0', 'a/b', '0/1/2', '0.5/2']
)
def test_a_bad_shard_is_told(shard):
  with pytest.raises(UserError, match='give i/n with 0 <= i < n'):
    shard_of(CELLS, shard)


def test_cells_of_other_shards_are_read_and_missing_ones_named():
  ran = []

  def run(cell):
    ran.append(cell.name)
    return cell.settings['number']

  there = {'0': 'read', '4': 'read'}
  read = lambda cell: there.get(cell.name)
  results, missing = run_cells(CELLS, '1/2', run, read, Progress(3))
  assert ran == ['1', '3', '5']
  assert results == {'0': 'read', '1': 1, '3': 3, '4': 'read', '5': 5}
  assert missing == ['2', '6']
