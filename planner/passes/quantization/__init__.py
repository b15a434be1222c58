"""Cheaper number formats for weights and activations."""
