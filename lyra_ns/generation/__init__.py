"""One input to a scene of Gaussians: read, planned, filmed by a teacher, reconstructed, written."""
