"""Small runs for the tests of the report, and copies of them that differ in what a test needs."""

import json
import re
import shutil
from pathlib import Path
from typing import Any


def record(run: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return document


def change(run: Path, **changed: object) -> None:
    """Change keys of run.json."""
    (run / "run.json").write_text(json.dumps(record(run) | changed), encoding="utf-8")


def light_copy(run: Path, to: Path, *, name: str, seed: int, metrics: bool = True) -> Path:
    """The run's papers without its weights, under another name and seed."""
    to.mkdir(parents=True)
    text = (run / "recipe.toml").read_text(encoding="utf-8")
    text = re.sub(r'^name = ".*"$', f"name = {json.dumps(name)}", text, count=1, flags=re.MULTILINE)
    (to / "recipe.toml").write_text(re.sub(r"^seed = \d+$", f"seed = {seed}", text, flags=re.MULTILINE), "utf-8")
    (to / "run.json").write_text(json.dumps(record(run) | {"seed": seed}), encoding="utf-8")
    if metrics:
        shutil.copy(run / "metrics.jsonl", to / "metrics.jsonl")
    return to
