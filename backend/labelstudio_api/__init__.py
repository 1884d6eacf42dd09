"""Call Label Studio's HTTP API."""
