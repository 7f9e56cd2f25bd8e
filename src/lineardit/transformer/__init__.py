"""Diffusion transformers: SANA, LinearDiT and the softmax DiT, with their blocks."""
