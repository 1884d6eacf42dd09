"""Measure the models alone, for `vlsam bench`. Comparisons are ratios within one run."""
