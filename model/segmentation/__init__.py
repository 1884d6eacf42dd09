"""Run SAM: embed images, decode prompts into masks, and refine masks by clicks."""
