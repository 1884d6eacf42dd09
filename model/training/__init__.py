"""Scripts that trained the built-in models."""
