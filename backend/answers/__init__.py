"""Make predictions for tasks, and correct regions by clicks."""
