"""Fewer, better placed or cheaper denoising steps."""
