"""Detectors of adversarial pictures."""
