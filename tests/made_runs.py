"""Runs as trainings leave them, without their weights: real ones, copied and changed."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w


def made(
    source: Path,
    folder: Path,
    *,
    name: str | None = None,
    seed: int = 0,
    errors: Mapping[str, float] | None = None,
    settings: Mapping[str, Any] | None = None,
    fingerprints: Mapping[str, str] | None = None,
    **record: Any,
) -> Path:
    """A run like `source` in `folder`: its small files, with another name, seed, top-1 errors, settings, run.json."""
    folder.mkdir(parents=True)
    recipe = tomllib.loads((source / "recipe.toml").read_text())
    recipe["name"] = name or recipe["name"]
    recipe["train"]["seed"] = seed
    for key, value in (settings or {}).items():
        section, _, word = key.partition(".")
        recipe.setdefault(section, {})[word] = value
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))
    (folder / "metrics.jsonl").write_bytes((source / "metrics.jsonl").read_bytes())
    document = json.loads((source / "run.json").read_text()) | {"seed": seed}
    for member, error in (errors or {}).items():
        document["final"]["errors"][member]["top1"] = error
    document["data"]["fingerprints"] |= fingerprints or {}
    document |= record
    (folder / "run.json").write_text(json.dumps(document))
    return folder
