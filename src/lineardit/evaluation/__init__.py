"""How good reconstructions and generated scenes are."""
