"""Options, cells and shards that all experiments share."""

import dataclasses

import pytest

from jaxadv import experiment
from jaxadv.errors import UserError
from jaxadv.experiment import Cell, Options, shard_of

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


def test_only_options_that_change_results_tell_runs_apart():
  config = Options()
  free = dataclasses.replace(
    config, batch_size=7, cache_dir='c', data_dir='d', shard='1/2'
  )
  assert experiment.result_config(free) == experiment.result_config(config)
  assert experiment.result_config(config) == {'variant': 'quick', 'seed': 0}


@pytest.mark.parametrize(
  'option, value',
  [('batch_size', 0), ('seed', -1), ('shard', '3/3')],
)
def test_bad_options_are_named_with_their_value(option, value):
  with pytest.raises(UserError, match=f'^{option} is .*{value}'):
    experiment.check_options(dataclasses.replace(Options(), **{option: value}))


def test_cache_lies_beside_the_workdir_unless_given(tmp_path):
  workdir = str(tmp_path / 'runs' / 'one')
  assert experiment.cache_dir(Options(), workdir) == str(
    tmp_path / 'runs' / 'cache'
  )
  assert experiment.cache_dir(Options(cache_dir='here'), workdir) == 'here'


def test_data_dir_comes_from_the_flag_then_the_environment(monkeypatch):
  monkeypatch.setenv('JAXADV_DATA_DIR', 'environment')
  assert experiment.data_dir('flag') == 'flag'
  assert experiment.data_dir('') == 'environment'
  monkeypatch.delenv('JAXADV_DATA_DIR')
  assert experiment.data_dir('') is None
