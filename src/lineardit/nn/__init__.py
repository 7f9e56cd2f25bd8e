"""Layers that the transformer and the autoencoder share."""
