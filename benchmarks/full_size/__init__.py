"""Speed and memory at the paper's size: 6 trajectories of 121 frames at 704x1280, on one CUDA device."""
