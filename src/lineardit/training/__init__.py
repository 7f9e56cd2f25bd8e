"""The loop, its checkpoints, and what is trained by it."""
