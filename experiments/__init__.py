"""Experiments: a folder a paper, a file an experiment."""
