"""Check a connection to Label Studio, and repair it: `vlsam doctor`."""
