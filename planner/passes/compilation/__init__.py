"""Compiled execution of the denoiser."""
