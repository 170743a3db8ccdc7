"""Training: one recipe, several seeds, the teachers that a recipe names."""
