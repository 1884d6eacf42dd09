"""The client of Label Studio's HTTP API that product code uses."""
