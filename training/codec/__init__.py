"""Training of the learned codec: `python -m training.codec.train`, `.evaluate` and `.export`.

Needs torch, numpy, pillow, safetensors and jaxtyping, nothing else.
"""
