"""nerfstudio methods; modules here import nothing heavy, because every ns-* command loads them."""
