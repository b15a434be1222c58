"""Loads a pipeline, says exactly which one it is, puts a plan on it and takes it off."""
