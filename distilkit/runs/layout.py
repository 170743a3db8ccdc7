"""The names of what lies in a run's folder, and what its run.json always says. Imports no torch."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

FORMAT = 2
"""Of the run folders that this version writes; since 2 their recipes may be of another version than their reader's."""
READABLE = (1, FORMAT)
RECORD = "run.json"
RECIPE = "recipe.toml"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
REQUIRED = ("state", "method", "architecture", "members", "leader", "ensemble", "parameters", "flops", "data", "seed")
"""What every run.json says from its first moment on."""


def other_format(record: Mapping[str, Any]) -> str:
    """What is wrong with the format of a record that is not ours to read; only a number is quoted of it."""
    found = record.get("format")
    return f"has format {found}" if type(found) is int else "has no number of a format"


def begun(record: Mapping[str, Any]) -> str:
    """By which runs are put in the order in which they began, from run.json: a time in ISO 8601.

    `created`; or `after`, where a clock had been set back: a microsecond after those that were there already.
    """
    return max(str(record.get("created", "")), str(record.get("after", "")))


def after(latest: str) -> str:
    """What is just later than `latest`; empty where that is no time."""
    try:
        return (datetime.fromisoformat(latest) + timedelta(microseconds=1)).isoformat()
    except (ValueError, OverflowError):
        return ""
