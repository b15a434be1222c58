"""Which passes may stand together here, in which order, and why not."""
