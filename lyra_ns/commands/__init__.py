"""Subcommands of `ns-lyra`, one family per file; each imports what it needs when it runs."""
