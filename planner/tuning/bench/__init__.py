"""Compares planner's caches with those of other libraries on one pipeline."""
