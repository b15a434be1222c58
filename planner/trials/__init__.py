"""One plan, one outcome: rendered in a worker process that may die, kept in the ledger."""
