"""One module per command, or per pair of commands that belong together."""
