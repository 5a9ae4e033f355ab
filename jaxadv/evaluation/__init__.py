"""How robust a classifier is, measured whole: attacks, checks, a report."""

from jaxadv.evaluation.robustness import measure_robustness

__all__ = ['measure_robustness']
