"""The costly operations, each in plain torch and as kernels that are tested against it."""
