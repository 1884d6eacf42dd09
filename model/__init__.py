"""VL-SAM: an image in, named masks out. Knows nothing of Label Studio."""
