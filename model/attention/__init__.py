"""Compute attention maps over the image from a VLM, and point prompts from the maps."""
