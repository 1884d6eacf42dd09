"""Download and verify weights, and choose the device that they run on."""
