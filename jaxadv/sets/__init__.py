"""Sets of adversarial pictures: made, written and read."""
