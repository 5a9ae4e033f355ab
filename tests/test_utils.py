"""The small helpers."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.errors import UserError
from jaxadv.utils import check_range, check_whole

FAULTS = """
import resource
import numpy as np
from jaxadv.utils import keep_freed_memory
{call}
def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  np.ones(2**23)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='about glibc')
def test_freed_memory_is_used_again():
  """64 MiB are 16,384 pages, asked for anew each time without the call."""
  asked = {
    call: int(
      subprocess.run(
        [sys.executable, '-c', FAULTS.format(call=call)],
        capture_output=True,
        text=True,
        check=True,
      ).stdout
    )
    for call in ('', 'keep_freed_memory()')
  }
  assert asked['keep_freed_memory()'] < 100 < asked['']


@pytest.mark.parametrize(
  ('value', 'words'),
  [
    ('0.5', "share is '0.5' but must be a number; give a half"),
    (None, 'share is None but must be a number'),
    (True, 'share is True but must be a number'),
    ([[0.1], [0.2, 0.3]], 'must be a number'),
    (object, 'must be a number'),
    ({'a' * 50: 1}, 'share is of type dict but must be a number'),
    (float('nan'), r'share is nan but must lie in \(0, 1\]'),
    ([0.5, 2.0], r'share is values up to 2.0 but must lie in \(0, 1\]'),
  ],
)
def test_what_is_no_number_in_the_range_is_refused(value, words):
  with pytest.raises(UserError, match=words):
    check_range('share', value, 0, 1, open_low=True, advice='; give a half')


def test_numbers_in_the_range_pass():
  for value in (1, 0.5, np.float32(1), jnp.bfloat16(0.5), [0.1, 1], np.ones(2)):
    check_range('share', value, 0, 1)
  jax.eval_shape(lambda x: check_range('share', x, 0, 1) or x, 2.0)
  with pytest.raises(UserError, match=r'is inf but must lie in \[0, inf\)'):
    check_range('share', float('inf'), 0, float('inf'))


def test_counts_are_plain_whole_numbers():
  for value in (1, np.int8(3), jnp.int32(2)):
    check_whole('num', value, 1)
  for value in (1.0, '1', True, None, [1], np.ones(2, int), 1 + 1j):
    with pytest.raises(UserError, match='num is .* must be a whole number'):
      check_whole('num', value, 1)
  with pytest.raises(UserError, match=r'num is 0 but must lie in \[1, inf\)'):
    check_whole('num', 0, 1)
  with pytest.raises(UserError, match='num is traced but must be a plain'):
    jax.eval_shape(lambda num: check_whole('num', num, 1) or num, 1)
