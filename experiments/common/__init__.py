"""What the experiments of all papers are made of."""
