"""GEN3C's network at full size with random weights: time, memory, and what each way changes."""
