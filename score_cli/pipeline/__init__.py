"""The stages put together: recipes, runs, evaluation."""
