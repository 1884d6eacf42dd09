"""Make predictions for tasks, and answer clicks."""
