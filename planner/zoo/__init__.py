"""The embedded models: weights, data generator, trainer."""
