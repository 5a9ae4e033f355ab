"""Sets of our own, as TFDS builders."""
