"""The handwritten digits that come with scikit-learn, as a TFDS set."""
