"""The models of a process: the queue of work on the device, and the embeddings that are kept."""
