"""The names of what lies in a run's folder, and what its run.json always says. Imports no torch."""

from collections.abc import Mapping
from typing import Any

FORMAT = 1
RECORD = "run.json"
RECIPE = "recipe.toml"
METRICS = "metrics.jsonl"
LOCK = ".lock"
REQUIRED = ("state", "method", "architecture", "members", "leader", "ensemble", "parameters", "flops", "data", "seed")
"""What every run.json says from its first moment on."""


def begun(record: Mapping[str, Any]) -> tuple[str, bool, str]:
    """By which runs are put in the order in which they began: their run.json's own time, and what came before them.

    `after`, which is there where a clock had been set back, is the latest time of those that were there already.
    """
    created, after = str(record.get("created", "")), str(record.get("after", ""))
    return max(created, after), after > created, created
