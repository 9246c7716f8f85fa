"""The command `manualgrad`: `main` has the table of subcommands, each file below one of them."""
