"""The nine stages in which the paper's decoders are trained, as one resumable driver (lyra_decoder.md 7)."""
