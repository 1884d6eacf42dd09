"""Serve the HTTP routes that Label Studio calls."""
