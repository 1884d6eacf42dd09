"""SAM: embeddings of images, masks for prompts, and refinement by clicks."""
