"""Weights: where they come from, and the device that they run on."""
