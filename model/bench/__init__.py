"""What `vlsam bench` measures: every figure of a comparison comes from one run, as a ratio."""
