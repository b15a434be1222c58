"""Every technique: what it needs, owns and costs, how to put it on and take it off."""
