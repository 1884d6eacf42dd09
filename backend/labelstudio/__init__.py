"""Label Studio's protocol, as pure functions: labeling configs, tasks, regions and results. No I/O."""
