"""The parts of `--exp=verify`: attacks by name, measuring, the report."""
