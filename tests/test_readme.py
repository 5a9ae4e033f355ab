"""The documents say what is so: commands, flags, paths and code of README."""

import dataclasses
import importlib
import pathlib
import re

import numpy as np
import pytest
from absl import flags

import launch
from jaxadv.attacks import ATTACKS

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = (
  'README.md',
  'BUILD.md',
  'experiments/connection/README.md',
  'experiments/gcd/README.md',
)
# Flags of other programs that the documents name: XLA, SLURM, gcloud.
FOREIGN = set(
  'xla_force_host_platform_device_count array gres nodes time command worker '
  'zone'.split()
)


def _text(name):
  return (ROOT / name).read_text(encoding='utf-8')


def _blocks(name, language):
  return re.findall(rf'```{language}\n(.*?)```', _text(name), re.DOTALL)


def _flags():
  """Gives the flags of all experiments."""
  values = flags.FlagValues()
  launch.define_common_flags(values)
  for module in launch.experiments().values():
    config = importlib.import_module(module).get_config('quick')
    launch.define_config_flags(values, config)
  return values


def test_the_two_commands_come_first_and_ci_runs_the_second():
  first, second = (block.strip() for block in _blocks('README.md', 'bash')[:2])
  assert first == (
    'python3 -m venv .venv && .venv/bin/pip install -e . && '
    '.venv/bin/python launch.py --exp=unseen_transfer'
  )
  assert f"readme_command='{second}'\n" in _text('.ci/run')


@pytest.fixture(scope='module')
def first_use(tmp_path_factory):
  """Runs the Python of README from top to bottom."""
  names = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    patch.chdir(tmp_path_factory.mktemp('here'))
    for block in _blocks('README.md', 'python'):
      exec(compile(block, 'README.md', 'exec'), names)
  return names


def test_first_use_detects_the_attack(first_use):
  assert first_use['found'].attack_success_rate > 0.1
  assert first_use['found'].linf.max() <= 16 / 255 + 1e-6
  assert 0.8 < first_use['detected'].auc <= 1
  of_clean = first_use['detector'](first_use['clean'].images)
  assert (first_use['scores'] > 0).mean() > 0.5 > (of_clean > 0).mean()


def test_function_linen_and_nnx_are_the_same_classifier(first_use):
  images = first_use['clean'].images[:20] / np.float32(255)
  logits = first_use['classifier'](images)
  for name in ('linen', 'nnx_model'):
    np.testing.assert_allclose(first_use[name](images), logits, atol=1e-4)
  for name in ('linen_auc', 'nnx_auc'):
    assert first_use[name] == pytest.approx(first_use['detected'].auc, abs=0.05)


def test_attacks_do_what_is_said_of_them(first_use):
  small, middle, large = first_use['robust_accuracy']
  assert 1 >= small > middle > large > 0
  batch, attacked = first_use['batch'], first_use['attacked_batch']
  assert np.abs(attacked - batch).max() == pytest.approx(8 / 255, abs=1e-6)
  whole = first_use['curve'][2].success[:64]
  np.testing.assert_array_equal(first_use['success'], whole)
  assert 0 < first_use['reached'].success.mean() < 1
  assert first_use['nearest'].survives_uint8 > 0.99
  assert first_use['boundary'].survives_uint8 < 0.9
  values = [share.value for share in first_use['l2_curve']]
  assert 1 > values[0] > values[2] >= 0
  standard = first_use['standard'].robust_accuracy
  assert standard <= 1 - first_use['found'].success[:32].mean()


def test_readme_lists_all_attacks():
  text = _text('README.md').partition('## Attacks')[2].partition('\n\n**')[0]
  # The two directions of one function.
  names = {name.partition('_plus')[0] for name in ATTACKS} - {'ni_minus'}
  assert not {name for name in names if f'`{name}`' not in text}


def test_robustness_falls_with_the_radius(first_use):
  shares = [share.value for share in first_use['measured'].worst()]
  assert 1 > shares[0] > shares[-1] > 0


def test_it_takes_six_lines():
  lines = _blocks('README.md', 'python')[1].splitlines()
  assert len(lines) == 6 and not any(line.startswith(' ') for line in lines)


@pytest.mark.parametrize('name', DOCUMENTS)
def test_flags_exist(name):
  known = _flags()
  # --name=value or `--name` alone; not those of pip, git and the like, nor of
  # commands other than launch.py.
  text = re.sub(r'`python -m [^`]*`', '', _text(name))
  named = set(re.findall(r'(?<![\w-])--([a-z]\w*)(?==)', text))
  named |= {
    flag
    for line in _text(name).splitlines()
    if 'launch.py' in line
    for flag in re.findall(r'--(\w+)', line)
  }
  assert named
  unknown = {flag for flag in named - FOREIGN - {'help'} if flag not in known}
  assert not unknown


# Those of BUILD.md, which have variables, are tried in test_hosts.py.
@pytest.mark.parametrize('name', sorted(set(DOCUMENTS) - {'BUILD.md'}))
def test_commands_parse(name, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  for block in _blocks(name, 'bash'):
    for line in block.splitlines():
      command = line.partition('launch.py')[2].partition('#')[0]
      if command and '--help' not in command:
        values, module = launch.parse(['launch.py', *command.split()])
        if module is not None:
          assert dataclasses.is_dataclass(launch.configure(values, module))


@pytest.mark.parametrize(
  'name', (*DOCUMENTS, 'CHANGELOG.md', 'CONTRIBUTING.md')
)
def test_links_and_paths_exist(name):
  text, folder = _text(name), (ROOT / name).parent
  for link in re.findall(r'\]\(([^)#]+)\)', text):
    assert '://' in link or (folder / link).exists(), link
  folders = 'jaxadv|experiments|tests|benchmarks|docs|examples'
  pattern = rf'`((?:{folders})(?:/[\w.]+)+/?)`'
  for path in re.findall(pattern, text):
    assert (ROOT / path).exists(), path
  for dotted in re.findall(r'`(jaxadv(?:\.\w+)+)`', text):
    module, _, attribute = dotted.rpartition('.')
    try:
      importlib.import_module(dotted)
    except ModuleNotFoundError:
      assert hasattr(importlib.import_module(module), attribute), dotted
