"""The pack of photographs on which shipped weights are trained."""
