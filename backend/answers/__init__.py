"""Predictions for tasks, and answers to clicks."""
