"""Checkpoints: our own folders, and the only place that knows foreign names."""
