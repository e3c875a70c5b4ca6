"""The data maker: pictures and videos to a training set of clips with latents, cameras and depth."""
