"""Nouns: what is tuned, where, for which call and goal, and what came out."""
