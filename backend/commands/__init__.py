"""Define the commands of `vlsam`: each module holds the arguments of one command, and runs it."""
