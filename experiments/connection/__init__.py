"""Exploring Robustness Connection between Artificial and Natural ...

Agarwal, Ratha, Vatsa, Singh, CVPR Workshops 2022.
"""
