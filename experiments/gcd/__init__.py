"""Li, Wang, Wu: Are L2 adversarial examples intrinsically different? (2020)."""
