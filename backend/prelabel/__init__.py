"""`vlsam prelabel`: projects, folders and lists of images to predictions, resumable, without a server."""
