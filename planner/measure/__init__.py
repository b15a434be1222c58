"""Seconds, bytes, distance from the reference images, and the bounds drawn from them."""
