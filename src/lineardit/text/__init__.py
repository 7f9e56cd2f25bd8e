"""Prompts to embeddings: token budgets, and the encoders of the published and bundled models."""
