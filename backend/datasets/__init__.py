"""Write data sets for prelabel and export: items, the state of a run, formats, and the summary."""
