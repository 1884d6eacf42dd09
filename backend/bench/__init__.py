"""`vlsam bench`: measurements of this backend."""
