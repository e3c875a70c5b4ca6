"""The latent Gaussian decoder: its network, what it is conditioned on, and its weights on disk."""
