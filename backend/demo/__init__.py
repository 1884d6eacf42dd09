"""`make demo`, and the processes that the end-to-end tests start."""
