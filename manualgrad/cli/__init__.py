"""The command `manualgrad`. `main` holds the table of subcommands; each has a file of its own. Nothing else imports this room."""
