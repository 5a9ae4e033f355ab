"""Figures of merit, from arrays to numbers; no model, no device."""
