"""metrics.jsonl: one JSON object per finished epoch, readable while the training goes on."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from distilkit.errors import UserError
from distilkit.reading import UnreadableError, read_json_lines


def finite(value: Any) -> Any:
    """`value` with every float that is not finite replaced by None: JSON knows neither NaN nor infinity."""
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` into words that help."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {error.strerror or error}",
            "free space or choose another folder with --runs; the checkpoints written before are intact",
        ) from error


def append(file: Path, line: Mapping[str, Any]) -> None:
    """Add one line and have it written to the disk, where it must be before its checkpoint is.

    Raises `UserError` when the disk is full or the folder cannot be written.
    """
    with writing(file), file.open("a", encoding="utf-8") as stream:
        _write(stream, json.dumps(finite(line), allow_nan=False) + "\n")


def read(file: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line that a kill cut short is left out.

    Raises `UserError` where a line is damaged, or the file is no plain file of at most `reading.LARGEST_METRICS` bytes.
    """
    lines: list[dict[str, Any]] = []
    try:
        for number, line in read_json_lines(file):
            if not isinstance(line, dict) or type(line.get("epoch")) is not int:
                problem = f"{file}, line {number} is damaged: it is no epoch's JSON object"
                raise UserError(problem, "put the line right, or remove it")
            lines.append(line)
    except UnreadableError as error:
        if error.absent:
            return []
        raise UserError(error.problem, "put back the file that the training wrote") from error
    return lines


def keep_until(file: Path, epoch: int) -> None:
    """Drop the lines after `epoch`: they were written after the checkpoint that a resumed run starts from.

    Raises `UserError` like `append`, and if a line is damaged.
    """
    kept = [line for line in read(file) if line["epoch"] <= epoch]
    partial = file.with_name(f".partial-{file.name}")
    with writing(file):
        with partial.open("w", encoding="utf-8") as stream:
            _write(stream, "".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(file)


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()
    os.fsync(stream.fileno())
