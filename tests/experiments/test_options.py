"""Options that all experiments have, and what a field allows."""

import dataclasses

import pytest

from experiments.common.options import (
  NETWORK,
  Options,
  cache_dir,
  data_dir,
  numbers,
  option,
  result_config,
)
from jaxadv.errors import UserError


@dataclasses.dataclass(frozen=True)
class Some(Options):
  """An experiment's options, one of each sort."""

  image_size: int = option(32, 'Side.', within='[1, inf)')
  rate: float = option(0.5, 'A rate.', within='(0, 1]')
  dropout: float = option(0.5, 'Another.', within='[0, 1)')
  alphas: tuple[str, ...] = option(('0.1',), 'Several.', within='[0, 1]')
  kinds: tuple[str, ...] = option(('a',), 'Kinds.', choices=('a', 'b'))
  backbones: tuple[str, ...] = option(('vgg11:0.1',), 'Nets.', kind=NETWORK)


def test_only_options_that_change_results_tell_runs_apart():
  config = Options()
  free = dataclasses.replace(
    config, batch_size=7, cache_dir='c', data_dir='d', shard='1/2'
  )
  assert result_config(free) == result_config(config)
  assert result_config(config) == {'variant': 'quick', 'seed': 0}


@pytest.mark.parametrize(
  'given, said',
  [
    ({'batch_size': 0}, '--batch_size is 0; it must be 1 or more'),
    ({'seed': -1}, '--seed is -1; it must be 0 or more'),
    ({'shard': '3/3'}, "shard is '3/3'"),
    ({'variant': 'quik'}, "--variant has no choice 'quik', perhaps quick"),
    ({'rate': 0.0}, '--rate is 0.0; it must lie in (0, 1]'),
    ({'rate': float('nan')}, '--rate is nan; it must lie in (0, 1]'),
    ({'dropout': 1.0}, '--dropout is 1.0; it must lie in [0, 1)'),
    (
      {'alphas': ('0.5', '1.5')},
      "--alphas is '0.5,1.5'; give numbers in [0, 1]",
    ),
    ({'alphas': ('x',)}, "--alphas is 'x'"),
    ({'alphas': ()}, "--alphas is ''"),
    ({'kinds': ('a', 'c')}, "--kinds has no choice 'c'"),
    ({'kinds': ()}, '--kinds is empty; give at least one'),
    ({'kinds': ('a', 'a')}, '--kinds names one twice: a, a'),
    ({'backbones': ('vgg9',)}, "network has no choice 'vgg9'"),
    # The same network, once with the size that it takes anyway.
    (
      {'backbones': ('vgg11:0.1', 'vgg11:0.1:32')},
      '--backbones names one twice',
    ),
  ],
)
def test_what_a_field_does_not_allow_is_named_with_what_it_does(given, said):
  with pytest.raises(UserError) as error:
    Some(**given)
  assert said in str(error.value)


def test_ends_of_intervals_count_as_they_are_written():
  config = Some(rate=1.0, dropout=0.0, alphas=('0', '1', '8/255'))
  assert numbers('--alphas', config.alphas, '[0, 1]') == (0, 1, 8 / 255)


def test_cache_lies_beside_the_workdir_unless_given(tmp_path):
  workdir = str(tmp_path / 'runs' / 'one')
  assert cache_dir(Options(), workdir) == str(tmp_path / 'runs' / 'cache')
  assert cache_dir(Options(cache_dir='here'), workdir) == 'here'


def test_data_dir_comes_from_the_flag_then_the_environment(monkeypatch):
  monkeypatch.setenv('JAXADV_DATA_DIR', 'environment')
  assert data_dir('flag') == 'flag'
  assert data_dir('') == 'environment'
  monkeypatch.delenv('JAXADV_DATA_DIR')
  assert data_dir('') is None
