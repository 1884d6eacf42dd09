"""Builders, stand-ins, fake servers and process starters that tests share. Fixtures are in conftest.py."""
