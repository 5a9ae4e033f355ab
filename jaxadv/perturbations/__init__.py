"""Changes to pictures that know no model: `(keys, images) -> images`."""
