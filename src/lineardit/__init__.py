"""Train, fine-tune, run and serve linear-attention diffusion transformers."""
