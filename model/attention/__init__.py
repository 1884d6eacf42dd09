"""From a VLM's attention to maps over the image, and from maps to point prompts."""
