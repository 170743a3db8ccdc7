"""What helps around trainings: recipes, models, runs, this machine."""
