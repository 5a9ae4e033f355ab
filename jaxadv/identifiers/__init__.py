"""Networks that name the kind of an adversarial picture."""
