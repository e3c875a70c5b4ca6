"""The pictures that the weights learn from: gathered from packages with free licences into one pack."""
