"""Errors that one sentence explains; `launch.py` prints them and exits."""


class UserError(ValueError):
  """What was asked for cannot be: names the value given and the valid ones.

  Raised before any long work starts; `launch.py` turns it into exit code 2.
  """


class DataError(RuntimeError):
  """Data on disk or a number in a run is broken; names the file or record.

  Raised in the middle of work; results finished earlier stay as they are.
  """
