"""Where depth and cameras of inputs come from."""
