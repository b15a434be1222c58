"""Reuse between neighbouring denoising steps, and exact reuse between calls."""
