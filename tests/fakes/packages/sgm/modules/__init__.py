"""Attention and the diffusion modules."""
