"""Adversarial examples at high throughput: attacks, detectors, defences."""
