"""The operators: their definition and the paths that compute them."""
