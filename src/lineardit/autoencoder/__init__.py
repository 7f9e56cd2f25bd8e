"""The deep-compression autoencoder (DC-AE)."""
