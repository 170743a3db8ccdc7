"""Reading text, JSON and TOML that a stranger may have written: of plain files alone, and no more than a stated size.

Whatever is wrong with a file is one `UnreadableError`. Its message never quotes the file. Imports no torch.
"""

import errno
import io
import json
import os
import re
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distilkit.errors import UserError, parse_json, require_plain_file

# A file of zeros takes no room on a disk, and Python's objects take up to fifty times their JSON's bytes.
LARGEST_RECIPE = 1_000_000
"""Bytes of a recipe, and of any other TOML."""
LARGEST_CARD = 2**20
"""Bytes of a model card."""
LARGEST_JSON = 8 * 2**20
"""Bytes of what describes a run, a checkpoint or a model: that of a hundred thousand classes is smaller."""
LARGEST_MEASURED = 32 * 2**20
"""Bytes of measurements: robustness curves, latencies, a report's confusions."""
LARGEST_METRICS = 64 * 2**20
"""Bytes of metrics.jsonl: some 50,000 epochs of three students."""
MOST_VALUES = 1_000_000
"""Values in one JSON file, of metrics.jsonl three times as many: each may take hundreds of bytes, an empty list too."""
DEEPEST_KEY = 32
"""Parts of a dotted TOML key: `tomllib` needs time by their square."""
LARGEST_DIRECTORY = 8 * 2**20
"""Bytes of a zip archive's directory: some hundred thousand members."""

_KEY_PART = re.compile(r"[\w\"'-][ \t]*\.")
_NO_KEY = re.compile(r"[^\w\"'. \t-]+")


class UnreadableError(UserError):
    """A file cannot be read. `reason`: why, for a sentence of the caller's. `absent`, `too_large`: kinds of that."""

    def __init__(self, file: Path, reason: str, *, absent: bool = False, too_large: bool = False) -> None:
        super().__init__(f"{file} cannot be read: {reason}")
        self.reason, self.absent, self.too_large = reason, absent, too_large


def read_bytes(file: Path, most: int) -> bytes:
    """All of a plain file of at most `most` bytes. Raises `UnreadableError` for any other."""
    try:
        require_plain_file(file, most)
        with file.open("rb") as stream:
            content = stream.read(most + 1)  # it may have grown, and a file of /proc says no size
    except OSError as error:
        reason, too_large = error.strerror or str(error), error.errno == errno.EFBIG
        raise UnreadableError(file, reason, absent=isinstance(error, FileNotFoundError), too_large=too_large) from error
    except ValueError as error:  # a zero byte in the path
        raise UnreadableError(file, str(error), absent=True) from error
    if len(content) > most:
        raise UnreadableError(file, f"it has more than {most:,} bytes", too_large=True)
    return content


def read_text(file: Path, most: int = LARGEST_CARD, encoding: str = "utf-8") -> str:
    """Text of at most `most` bytes in UTF-8. Raises `UnreadableError`."""
    content = read_bytes(file, most)
    try:
        return io.TextIOWrapper(io.BytesIO(content), encoding=encoding).read()  # with ends of lines as text has them
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnreadableError(file, f"line {line} is not UTF-8 text") from error


def read_json(file: Path, most: int = LARGEST_JSON) -> Any:
    """A JSON document of at most `most` bytes. Raises `UnreadableError`."""
    return _parsed(file, read_json_bytes(file, most))


def read_json_bytes(file: Path, most: int = LARGEST_JSON, most_values: int = MOST_VALUES) -> bytes:
    """The same for a parser of others: bytes with at most so many values, whatever they are."""
    content = read_bytes(file, most)
    values = sum(map(content.count, (b",", b"[", b"{")))  # and no fewer than there are
    if values > most_values:
        raise UnreadableError(file, f"it has {values:,} values, and {most_values:,} are the most", too_large=True)
    return content


def read_json_lines(file: Path, most: int = LARGEST_METRICS) -> Iterator[tuple[int, Any]]:
    """The number, from 1, and the JSON document of every complete line; None for one that holds no JSON.

    A last line without its end was cut short and is left out. Raises `UnreadableError`.
    """
    # By line feeds alone: Python knows other ends of lines, which JSON's texts may hold.
    for number, line in enumerate(io.BytesIO(read_json_bytes(file, most, 3 * MOST_VALUES)), start=1):
        if not line.endswith(b"\n"):
            return
        try:
            yield number, _parsed(file, line)
        except UnreadableError:
            yield number, None


def read_toml(file: Path, encoding: str = "utf-8") -> dict[str, Any]:
    """A TOML document of at most `LARGEST_RECIPE` bytes. Raises `UnreadableError`."""
    text = read_text(file, LARGEST_RECIPE, encoding)
    if any(len(_KEY_PART.findall(part)) > DEEPEST_KEY for part in _NO_KEY.split(text)):
        raise UnreadableError(file, "too many dots in a key")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # The rest of the message may quote the file.
        where = re.search(r"\(at line \d+, column \d+\)|\(at end of document\)", str(error))
        raise UnreadableError(file, f"it is not TOML {where[0] if where else ''}".rstrip()) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        raise UnreadableError(file, _too_much(error)) from error


def _parsed(file: Path, content: bytes) -> Any:
    try:
        return parse_json(content)
    except json.JSONDecodeError as error:
        raise UnreadableError(file, f"it is not JSON: {error}") from error
    except RecursionError as error:
        raise UnreadableError(file, _too_much(error)) from error
    except ValueError as error:
        reason = _too_much(error) if "digits" in str(error) else str(error)
        raise UnreadableError(file, reason) from error


def _too_much(error: ValueError | RecursionError) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


# ---------------------------------------------------------------------------------------------------------- archives


class _Archive(io.FileIO):
    """A file of which no more is read at once than a zip archive's directory may have."""

    def read(self, size: int | None = -1) -> bytes:
        rest = os.fstat(self.fileno()).st_size - self.tell()
        wanted = rest if size is None or size < 0 else min(size, rest)
        if wanted > LARGEST_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory has {wanted:,} bytes, and {LARGEST_DIRECTORY:,} are the most")
        return super().read(size if size is not None else -1) or b""


@contextmanager
def opened_archive(file: Path) -> Iterator[zipfile.ZipFile]:
    """A zip archive whose directory is of at most `LARGEST_DIRECTORY` bytes; members are to be read piece by piece.

    Raises `OSError` and what `zipfile` raises.
    """
    require_plain_file(file)
    with _Archive(file) as stream, zipfile.ZipFile(stream) as archive:
        yield archive
