"""Measure this backend: `vlsam bench`."""
