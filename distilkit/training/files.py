"""The names of what lies in a run's folder, and what its run.json always says. Imports no torch."""

FORMAT = 1
RECORD = "run.json"
RECIPE = "recipe.toml"
METRICS = "metrics.jsonl"
LOCK = ".lock"
REQUIRED = ("state", "method", "architecture", "members", "leader", "ensemble", "parameters", "flops", "data", "seed")
"""What every run.json says from its first moment on."""
