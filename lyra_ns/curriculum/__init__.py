"""The nine stages in which the paper's decoders are trained, as one resumable driver.

Source: docs/reference/lyra_training.md, "Curriculum".
"""
