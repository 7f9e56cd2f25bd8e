"""Diffusion transformers: the SANA network and its block."""
