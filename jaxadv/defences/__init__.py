"""Defences against adversarial pictures."""
