"""Measurements of `vlsam bench` that need the models alone. Comparisons are ratios within one run."""
