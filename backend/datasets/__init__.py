"""Data sets, which prelabel and export write: items, the state of a run, formats, and the summary."""
