"""Fetch images: from an address in a task to pixels, safely."""
