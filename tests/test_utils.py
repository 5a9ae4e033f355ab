"""The small helpers."""

import subprocess
import sys

import pytest

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
