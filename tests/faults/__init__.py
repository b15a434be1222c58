"""Passes that go wrong in a known way, and a pipeline source that brings them along."""
