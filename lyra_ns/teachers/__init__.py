"""Sources of camera-annotated video latents behind one interface."""
