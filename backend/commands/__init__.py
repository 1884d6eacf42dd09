"""Parse the command line, one module per command."""
