"""Peak memory: where weights rest, how they are stored, how images are decoded."""
