"""Train the built-in models: run the scripts from a checkout, as `python -m model.training.vlm`."""
