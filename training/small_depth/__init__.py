"""Training of the small depth network that ships: `python -m training.small_depth.train`."""
