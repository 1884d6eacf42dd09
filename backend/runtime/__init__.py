"""Run the models of a process, and cache the embeddings of images."""
