"""`ns-lyra`, one family of subcommands per file; each imports what it needs when it runs."""
