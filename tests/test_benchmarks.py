"""The benchmark of attacks: its errors, its judge, and a row end to end."""

import math

import numpy as np
import pytest

from benchmarks import attacks, compare, nets
from jaxadv.errors import UserError


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--lib=jaxadv,cleverhans'], 'cleverhans; give any of jaxadv'),
    (['--attack=pgd,jsma'], 'jsma; give any of fgsm'),
    (['--n=0'], 'at least 1'),
    (['--n=10', '--batch_size=4'], 'multiple of --batch_size'),
  ],
)
def test_refuses_arguments(arguments, message, capsys):
  with pytest.raises(SystemExit) as error:
    attacks.main(arguments)
  assert error.value.code == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize('name', ['resnet', 'small_cnn:0', 'vgg11:wide'])
def test_refuses_nets(name):
  with pytest.raises(UserError):
    nets.build(name, 32)


def test_judge():
  clean = np.full((3, 2, 2, 1), 0.5, np.float32)
  attacked = clean.copy()
  attacked[0] += 0.1
  attacked[1, 0, 0] = 1.25
  fooled = np.array([True, True, False])
  budget = compare.judge(clean, attacked, fooled, 0.4)
  assert budget.success == pytest.approx(2 / 3)
  assert budget.over_epsilon == pytest.approx(0.1)
  assert budget.outside_box == pytest.approx(0.25)
  assert budget.l2 == pytest.approx(0.2)
  # The row without success counts as far, so the median is the second row.
  minimal = compare.judge(clean, attacked, fooled, None)
  assert minimal.l2 == pytest.approx(0.5)
  attacked[0] = np.nan
  broken = compare.judge(clean, attacked, fooled, None)
  assert broken.success == pytest.approx(1 / 3)
  assert math.isinf(broken.outside_box)


def test_interleaved_gives_slow_ones_fewer_turns():
  calls = []
  runs = {name: lambda name=name: calls.append(name) for name in 'abc'}
  firsts = {'a': 1.0, 'b': 2.0, 'c': 9.0}
  measured = compare.interleaved(runs, firsts, repeats=3, limit_s=4)
  assert calls == ['a', 'b', 'a', 'b', 'a']
  assert measured['c'] == (9.0, 1)
  assert [measured[name][1] for name in 'ab'] == [3, 2]


def test_end_to_end(tmp_path, capsys):
  out = tmp_path / 'tables.md'
  attacks.main(
    [
      '--lib=jaxadv',
      '--attack=pgd_early',
      '--model=small_cnn:0.25',
      '--n=6',
      '--num_steps=2',
      '--slots=2',
      '--train_steps=60',
      '--repeats=1',
      f'--cache_dir={tmp_path}',
      f'--out={out}',
    ]
  )
  text = out.read_text(encoding='utf-8')
  assert text.strip() == capsys.readouterr().out.strip()
  assert str(tmp_path) not in text
  rows = {
    cells[1]: dict(zip(attacks._COLUMNS[1:], cells[2:], strict=False))
    for cells in (
      [c.strip() for c in line.split('|')] for line in text.split('\n')
    )
    if len(cells) > 2
  }
  slots, waiting = rows['jaxadv'], rows['jaxadv (waiting batch)']
  assert float(slots['over epsilon']) < 1e-6
  # The same pictures come back, and the passes were counted.
  assert slots['median L2'] == waiting['median L2']
  assert float(waiting['gradients']) == 2
  assert float(waiting['forward']) == 3  # the random start is judged clean
