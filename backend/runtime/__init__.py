"""Run the models of a process: the job queue, the retry when memory runs out, and the embedding cache."""
