"""How good a decoder is: the protocol, its baselines, and the check on a real photograph."""
