"""SAM: embeddings of images, and masks for prompts."""
