"""Triton kernels of the decoder, each beside a plain torch form that it is tested against."""
