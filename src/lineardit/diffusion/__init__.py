"""Paths, objectives, guidance and samplers over any callable velocity(latents, times)."""
