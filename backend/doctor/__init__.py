"""`vlsam doctor`: checks of a connection to Label Studio, and their repairs."""
