"""How the bases of the linear codec were fitted: `python -m training.linear_codec`."""
