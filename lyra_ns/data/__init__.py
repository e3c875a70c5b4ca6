"""Data sets in the official layout: readers, writers, and the batches that training draws from them."""
