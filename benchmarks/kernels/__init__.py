"""Speed and precision of single kernels and layers on a CUDA device."""
