"""metrics.jsonl: one JSON object per finished epoch, readable while the training goes on."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distilkit.errors import UserError


def finite(value: Any) -> Any:
    """`value` with every float that is not finite replaced by None: JSON knows neither NaN nor infinity."""
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def append(file: Path, line: Mapping[str, Any]) -> None:
    """Add one line, flushed. Raises `UserError` when the disk is full or the folder cannot be written."""
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(finite(line), allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{file} could not be written: {error.strerror or error}") from error


def read(file: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line that a kill cut short is left out."""
    if not file.is_file():
        return []
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines(keepends=True):
        if text.endswith("\n"):
            try:
                lines.append(json.loads(text))
            except ValueError as error:
                raise UserError(f"{file}, line {len(lines) + 1} is damaged: {error}") from error
    return lines


def keep_until(file: Path, epoch: int) -> None:
    """Drop the lines after `epoch`: they were written after the checkpoint that a resumed run starts from."""
    kept = [line for line in read(file) if line["epoch"] <= epoch]
    partial = file.with_name(f".partial-{file.name}")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    partial.replace(file)
