"""Data sets that prelabel and export write: items, the resumable state of a run, files and summary."""
