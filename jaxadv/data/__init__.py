"""Labelled pictures: where they come from and how they reach a device."""
