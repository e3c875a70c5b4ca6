"""Ways out: Gaussians as PLY, .splat or a web page, renders as video."""
