"""Annotate projects, folders and lists of images, resumable, without a server: `vlsam prelabel`."""
