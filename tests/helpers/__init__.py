"""What tests of several packages share: small inputs, references, and programs that they start."""
