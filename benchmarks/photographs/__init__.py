"""What `ns-lyra generate` makes of photographs that nothing was trained on, measured and shown."""
