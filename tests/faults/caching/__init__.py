"""Faulty passes; only a worker that loads `tests.faults.source` knows them."""
