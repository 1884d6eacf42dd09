"""Scripts that train the built-in models: run them from a checkout, as `python -m model.training.vlm`."""
