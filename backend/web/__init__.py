"""The HTTP server that Label Studio calls."""
