"""Trains the small decoder on depth-warped photographs and rendered scenes (`python -m training.decoder`)."""
