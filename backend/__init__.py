"""Label Studio's protocol: tasks in, predictions out. Knows nothing of attention; imports `model`."""
