"""The attention flow of a VLM, as maps over the image."""
