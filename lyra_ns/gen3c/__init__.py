"""GEN3C, a camera-controlled Cosmos video model, through diffusers."""
