"""Find, name and mask the objects of an image with VL-SAM. The package `vlsam` holds the public names."""
