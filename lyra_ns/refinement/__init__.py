"""Gaussians brought closer to pictures of their scene by gradient steps."""
