"""From an image, a text or a video to multi-trajectory latents: cameras, 3D cache, depth, video models."""
